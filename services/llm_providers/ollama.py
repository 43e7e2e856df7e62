"""Ollama, by its own API (`/api/chat`, one JSON object a line)."""

from collections.abc import Sequence
from typing import Any, Self, cast

import orjson
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_ollama import ChatOllama
from pydantic import model_validator

from domain.agents import ModelParameters
from domain.embeddings import Embedded, EmbeddingRequest
from domain.models import Abilities
from domain.usage import Usage
from services.llm_providers.base import BaseProvider, ListedModel
from services.llm_providers.wire.answer import Answer, Delta, Fragment, counted
from services.llm_providers.wire.completions import OLLAMA
from services.llm_providers.wire.embeddings import post_embeddings, refuse_token_ids
from services.llm_providers.wire.parameters import given
from services.llm_providers.wire.routed import RoutedChat
from services.llm_providers.wire.wired import WiredChat

#: Ollama has no such thing; whoever answers in its place may.
_NOT_OLLAMAS = frozenset({"tool_choice", "parallel_tool_calls"})


class OllamaChat(WiredChat, ChatOllama):
    """ChatOllama's conversions, `bind_tools` and `with_structured_output` over our client."""

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model, knowing these tools. `tool_choice` is for those that may answer in its place."""
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        known = [convert_to_openai_tool(tool) for tool in tools]
        return cast(Runnable[LanguageModelInput, AIMessage], self.bind(tools=known, **kwargs))

    @model_validator(mode="after")
    def _set_clients(self) -> Self:
        """Takes the place of ChatOllama's, which builds two httpx clients for each instance."""
        return self

    def _path(self) -> str:
        return "/api/chat"

    def _ask(
        self, messages: list[BaseMessage], stop: list[str] | None, *, stream: bool, **kwargs: Any
    ) -> dict[str, Any]:
        told = {name: value for name, value in kwargs.items() if name not in _NOT_OLLAMAS}
        payload = self._chat_params(messages, stop, **told, stream=stream)
        return {name: value for name, value in payload.items() if value is not None}

    def _read_line(self, answer: Answer, line: bytes) -> Delta | None:
        if not line.strip():
            return None
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise self._wire().unreadable(str(error)) from error
        if not isinstance(event, dict):
            raise self._wire().unreadable("a line that is not an object")
        return self._read_event(answer, event)

    def _read_whole(self, answer: Answer, body: dict[str, Any]) -> Delta:
        return self._read_event(answer, body)

    def _read_event(self, answer: Answer, event: dict[str, Any]) -> Delta:
        if event.get("error"):
            raise self._wire().error_in_stream(event["error"])
        if answer.served is None:
            answer.served = event.get("model")
        was_over = answer.done
        if event.get("done"):
            answer.done = True
            answer.finish = event.get("done_reason") or "stop"
            inputs, outputs = counted(event.get("prompt_eval_count")), counted(event.get("eval_count"))
            if inputs is not None and outputs is not None:
                answer.usage = Usage(input_tokens=inputs, output_tokens=outputs, total_tokens=inputs + outputs)
        message = event.get("message")
        if was_over or not isinstance(message, dict):
            return Delta()
        return Delta(
            str(message.get("content") or ""),
            str(message.get("thinking") or ""),
            _fragments(message.get("tool_calls"), len(answer.calls)),
        )


def _fragments(calls: Any, already: int) -> tuple[Fragment, ...]:
    """Ollama's calls come whole, without ids, with their arguments as an object."""
    found = []
    for position, call in enumerate(calls if isinstance(calls, list) else []):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            arguments = function.get("arguments")
            text = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
            found.append(Fragment(already + position, call.get("id"), function.get("name"), text))
    return tuple(found)


class Provider(BaseProvider):
    """An Ollama server."""

    vendor = OLLAMA
    completions_path = "/v1/chat/completions"

    def chat_model(self, name: str, parameters: ModelParameters) -> RoutedChat:
        """ChatOllama, sending through our client."""
        return OllamaChat(
            model=name,
            routeur_id=f"{self.config.name}/{name}",
            provider_client=self.client,
            **given(
                parameters, temperature="temperature", max_tokens="num_predict", top_p="top_p", stop="stop", seed="seed"
            ),
        )

    async def list_models(self, within: float) -> list[ListedModel]:
        """What has been pulled."""
        body = await self.client.get_json("/api/tags", within=within)
        entries = body.get("models") if isinstance(body, dict) else None
        if not isinstance(entries, list):
            raise self.client.unreadable("a list of models without models")
        found = []
        for entry in entries:
            if isinstance(entry, dict) and isinstance(name := entry.get("name") or entry.get("model"), str):
                able = entry.get("capabilities") or []
                found.append(
                    ListedModel(
                        name,
                        "embedding" if "embed" in name else "chat",
                        abilities=Abilities(
                            streaming=True, tools="tools" in able or None, vision="vision" in able or None
                        ),
                    )
                )
        return found

    async def embed(self, name: str, asked: EmbeddingRequest) -> Embedded:
        """By its OpenAI-compatible address, which counts tokens like everybody's; texts only."""
        refuse_token_ids(self.client, asked)
        return await post_embeddings(
            self.client, name, asked, path="/v1/embeddings", dimensions=asked.dimensions, encoding_format="float"
        )
