"""Mistral AI."""

from array import array
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from sys import byteorder
from typing import Any, Self

from langchain_core.messages import BaseMessage
from langchain_mistralai import ChatMistralAI
from pydantic import SecretStr, model_validator

from core.http import PROVIDERS_OWN, Patience
from domain.agents import ModelParameters
from domain.embeddings import Embedded, EmbeddingRequest
from domain.errors import InvalidRequest
from domain.models import Abilities
from domain.speech import SpeechFormat, SpeechRequest, Spoken
from services.llm_providers.base import BaseProvider, ListedModel, ModelKind
from services.llm_providers.wire.answer import counted
from services.llm_providers.wire.completions import MISTRAL
from services.llm_providers.wire.embeddings import post_embeddings, refuse_token_ids
from services.llm_providers.wire.listing import listed_entries
from services.llm_providers.wire.parameters import given
from services.llm_providers.wire.routed import RoutedChat
from services.llm_providers.wire.speech import post_speech
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
                "chat" if chat else _kind(entry["id"], able),
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

    def speak(
        self, name: str, asked: SpeechRequest, patience: Patience = PROVIDERS_OWN
    ) -> AbstractAsyncContextManager[Spoken]:
        """As events, the only form in which Mistral streams; its PCM are floats, which become 16 bit."""
        _check_speech(asked)
        payload = {
            "model": name,
            "input": asked.text,
            "voice_id": asked.voice,
            "response_format": asked.form.value,
            "stream": True,
        }
        convert = _whole_samples() if asked.form is SpeechFormat.PCM else None
        return post_speech(self.client, name, payload, patience, field="audio_data", convert=convert)


def _kind(name: str, able: Mapping[str, Any]) -> ModelKind:
    if "tts" in name:
        return "speech"
    return "transcription" if able.get("audio_transcription") else "embedding"


def _check_speech(asked: SpeechRequest) -> None:
    if asked.speed != 1:
        raise InvalidRequest("Mistral's voices have no speed: leave it out.", param="speed")
    if asked.instructions is not None:
        raise InvalidRequest("Mistral's voices take no instructions: leave them out.", param="instructions")
    if asked.form is SpeechFormat.AAC:
        raise InvalidRequest("Mistral speaks in mp3, opus, flac, wav and pcm.", param="response_format")


def _whole_samples() -> Callable[[bytes], bytes]:
    """Floats (32 bit little endian) as 16 bit samples, however they are cut."""
    rest = b""

    def convert(data: bytes) -> bytes:
        nonlocal rest
        data = rest + data
        whole = len(data) // 4 * 4
        data, rest = data[:whole], data[whole:]
        floats = array("f", data)
        if byteorder == "big":
            floats.byteswap()
        # not a number is neither above nor below anything: it becomes silence
        samples = array(
            "h",
            [round(32_767 * one) if -1 <= one <= 1 else (one > 1) * 32_767 or (one < -1) * -32_768 for one in floats],
        )
        if byteorder == "big":
            samples.byteswap()
        return samples.tobytes()

    return convert


def _check_temperature(temperature: float | None) -> None:
    if temperature is not None and temperature > _MAX_TEMPERATURE:
        raise InvalidRequest("Mistral's models take a temperature from 0 to 1.", param="temperature")
