"""Mistral AI."""

from collections.abc import Mapping
from typing import Any, Self

from langchain_core.messages import BaseMessage
from langchain_mistralai import ChatMistralAI
from pydantic import SecretStr, model_validator

from domain.agents import ModelParameters
from domain.embeddings import Embedded, EmbeddingRequest
from domain.errors import InvalidRequest
from domain.models import Abilities
from services.llm_providers.base import BaseProvider, ListedModel
from services.llm_providers.wire.answer import counted
from services.llm_providers.wire.completions import MISTRAL
from services.llm_providers.wire.embeddings import post_embeddings, refuse_token_ids
from services.llm_providers.wire.listing import listed_entries
from services.llm_providers.wire.parameters import given
from services.llm_providers.wire.routed import RoutedChat
from services.llm_providers.wire.wired import CompletionsChat

_NOT_USED = SecretStr("not-used")  # the real key is in our client's headers
_MAX_TEMPERATURE = 1.0  # ChatMistralAI and the API's documentation


class MistralChat(CompletionsChat, ChatMistralAI):  # type: ignore[misc] # its _agenerate names `stream`, ours takes it
    """ChatMistralAI's conversions, `bind_tools` and `with_structured_output` over our client."""

    temperature: float | None = None  # type: ignore[assignment] # absent: Mistral's own default for the model
    top_p: float | None = None  # type: ignore[assignment]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"api_key": _NOT_USED, **kwargs})

    @model_validator(mode="after")
    def validate_environment(self) -> Self:
        """Takes the place of ChatMistralAI's, which builds two httpx clients for each instance."""
        return self

    def _adopted(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "tool_choice": "any"} if kwargs.get("tool_choice") == "required" else kwargs

    def _ask(
        self, messages: list[BaseMessage], stop: list[str] | None, *, stream: bool, **kwargs: Any
    ) -> dict[str, Any]:
        dicts, parameters = self._create_message_dicts(messages, stop)
        return {**parameters, **kwargs, "messages": dicts, "stream": stream}


class Provider(BaseProvider):
    """Mistral AI, or whatever stands at MISTRAL_BASE_URL."""

    vendor = MISTRAL

    def chat_model(self, name: str, parameters: ModelParameters) -> RoutedChat:
        """ChatMistralAI, sending through our client."""
        _check_temperature(parameters.temperature)
        return MistralChat(
            model_name=name,
            routeur_id=f"{self.config.name}/{name}",
            provider_client=self.client,
            **given(
                parameters,
                temperature="temperature",
                max_tokens="max_tokens",
                top_p="top_p",
                stop="stop",
                seed="random_seed",
            ),
        )

    def completions_body(self, name: str, asked: Mapping[str, Any], *, streamed: bool) -> dict[str, Any]:
        """Raises InvalidRequest also for a temperature over 1."""
        _check_temperature(asked.get("temperature"))
        return super().completions_body(name, asked, streamed=streamed)

    async def list_models(self, within: float) -> list[ListedModel]:
        """Mistral says what each model can do; entries are repeated for their aliases."""
        found: dict[str, ListedModel] = {}
        for entry in await listed_entries(self.client, within):
            able = entry.get("capabilities")
            able = able if isinstance(able, dict) else {}
            chat = able.get("completion_chat", True)
            found[entry["id"]] = ListedModel(
                entry["id"],
                "chat" if chat else "transcription" if able.get("audio_transcription") else "embedding",
                description=str(entry.get("description") or ""),
                context_window=counted(entry.get("max_context_length")),
                abilities=Abilities(
                    streaming=chat or None, tools=able.get("function_calling"), vision=able.get("vision")
                ),
            )
        return list(found.values())

    async def embed(self, name: str, asked: EmbeddingRequest) -> Embedded:
        """As floats; Mistral reads texts only, and has its own word for the dimensions."""
        refuse_token_ids(self.client, asked)
        return await post_embeddings(
            self.client, name, asked, output_dimension=asked.dimensions, encoding_format="float"
        )


def _check_temperature(temperature: float | None) -> None:
    if temperature is not None and temperature > _MAX_TEMPERATURE:
        raise InvalidRequest("Mistral's models take a temperature from 0 to 1.", param="temperature")
