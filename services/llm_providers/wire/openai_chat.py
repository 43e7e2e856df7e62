"""LangChain's ChatOpenAI for everything that speaks OpenAI's wire; only the sending is ours."""

from typing import Any, Self

from langchain_core.messages import BaseMessage
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import SecretStr, model_validator

from services.llm_providers.wire.wired import CompletionsChat

#: ChatOpenAI would look for OPENAI_API_KEY in the environment; the real credentials are in our client's headers.
_NOT_USED = SecretStr("not-used")


class OpenAIWireChat(CompletionsChat, BaseChatOpenAI):
    """ChatOpenAI's conversions, `bind_tools` and `with_structured_output` over our client; `max_tokens` as servers
    other than OpenAI's own know it."""

    running_usage: bool = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"api_key": _NOT_USED, "use_responses_api": False, "stream_usage": True, **kwargs})

    @model_validator(mode="after")
    def validate_environment(self) -> Self:
        """Takes the place of ChatOpenAI's, which builds SDK clients and reads addresses from the environment."""
        return self

    def _ask(
        self, messages: list[BaseMessage], stop: list[str] | None, *, stream: bool, **kwargs: Any
    ) -> dict[str, Any]:
        if stream:
            options = {"include_usage": True} | ({"continuous_usage_stats": True} if self.running_usage else {})
            kwargs |= {"stream": True, "stream_options": options}
        payload: dict[str, Any] = self._get_request_payload(messages, stop=stop, **kwargs)
        if not stream:
            payload.pop("stream", None)
        wanted = payload.get("response_format")
        if isinstance(wanted, type):  # with_structured_output hands over the class itself
            schema = convert_to_json_schema(wanted)
            payload["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": wanted.__name__, "schema": schema},
            }
        return payload


class OpenAIChat(OpenAIWireChat, ChatOpenAI):
    """The same, as OpenAI's own models want it (`max_completion_tokens`, `developer` messages)."""
