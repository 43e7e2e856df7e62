"""Any OpenAI-compatible server: vLLM, llama.cpp, LM Studio, LocalAI, a gateway. One class, any number of servers."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from core.http import PROVIDERS_OWN, Patience
from domain.agents import ModelParameters
from domain.embeddings import Embedded, EmbeddingRequest
from domain.speech import SpeechRequest, Spoken
from services.llm_providers.base import BaseProvider, ListedModel, ModelKind
from services.llm_providers.wire.answer import counted
from services.llm_providers.wire.embeddings import post_embeddings
from services.llm_providers.wire.listing import listed_entries
from services.llm_providers.wire.openai_chat import OpenAIWireChat
from services.llm_providers.wire.parameters import given
from services.llm_providers.wire.routed import RoutedChat
from services.llm_providers.wire.speech import openai_payload, post_speech

#: What a model is for, by what its name holds; in this order.
_KINDS: tuple[tuple[str, ModelKind], ...] = (
    ("embed", "embedding"),
    ("whisper", "transcription"),
    ("transcrib", "transcription"),
    ("voxtral", "transcription"),
    ("parakeet", "transcription"),
    ("tts", "speech"),
)
#: How speaches says it.
_TASKS: dict[str, ModelKind] = {"automatic-speech-recognition": "transcription", "text-to-speech": "speech"}


class Provider(BaseProvider):
    """A server by name."""

    realtime_path = "/realtime"

    def chat_model(self, name: str, parameters: ModelParameters) -> RoutedChat:
        """ChatOpenAI's conversions, plain `max_tokens`."""
        return OpenAIWireChat(
            model=name,
            routeur_id=f"{self.config.name}/{name}",
            provider_client=self.client,
            running_usage=self.config.running_usage,
            **given(
                parameters, temperature="temperature", max_tokens="max_tokens", top_p="top_p", stop="stop", seed="seed"
            ),
        )

    async def list_models(self, within: float) -> list[ListedModel]:
        """Everything listed; vLLM and llama.cpp tell the context too."""
        return [
            ListedModel(
                entry["id"],
                _kind_of(entry),
                context_window=counted(entry.get("max_model_len"))
                or counted((entry.get("meta") or {}).get("n_ctx_train")),
            )
            for entry in await listed_entries(self.client, within)
        ]

    async def embed(self, name: str, asked: EmbeddingRequest) -> Embedded:
        """As floats: not every server encodes."""
        return await post_embeddings(self.client, name, asked, dimensions=asked.dimensions, encoding_format="float")

    def speak(
        self, name: str, asked: SpeechRequest, patience: Patience = PROVIDERS_OWN
    ) -> AbstractAsyncContextManager[Spoken]:
        """As OpenAI says it; events only where they were asked for."""
        return post_speech(self.client, name, openai_payload(name, asked), patience)


def _kind_of(entry: dict[str, Any]) -> ModelKind:
    told: ModelKind | None = _TASKS.get(str(entry.get("task")))
    name = entry["id"].lower()
    if told is not None:
        return told
    for word, kind in _KINDS:
        if word in name:
            return kind
    return "chat"
