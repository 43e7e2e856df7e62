"""OpenAI."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

from core.http import PROVIDERS_OWN, Patience
from domain.agents import ModelParameters
from domain.embeddings import Embedded, EmbeddingRequest
from domain.speech import SpeechRequest, Spoken
from services.llm_providers.base import BaseProvider, ListedModel
from services.llm_providers.wire.completions import OPENAI
from services.llm_providers.wire.embeddings import post_embeddings
from services.llm_providers.wire.listing import listed_entries
from services.llm_providers.wire.openai_chat import OpenAIChat
from services.llm_providers.wire.parameters import given
from services.llm_providers.wire.routed import RoutedChat
from services.llm_providers.wire.speech import openai_payload, post_speech

Kind = Literal["chat", "embedding", "transcription", "speech"]

#: Models of the list that are no chat models, by what their names hold; in this order.
_KINDS: tuple[tuple[str, Kind | None], ...] = (
    ("embedding", "embedding"),
    ("whisper", "transcription"),
    ("transcribe", "transcription"),
    ("tts", "speech"),
    ("realtime", None),
    ("audio", None),
    ("image", None),
    ("dall-e", None),
    ("sora", None),
    ("moderation", None),
    ("instruct", None),
    ("davinci", None),
    ("babbage", None),
)


class Provider(BaseProvider):
    """OpenAI, or whatever stands at OPENAI_BASE_URL."""

    vendor = OPENAI
    realtime_path = "/realtime"

    def chat_model(self, name: str, parameters: ModelParameters) -> RoutedChat:
        """ChatOpenAI, sending through our client."""
        return OpenAIChat(
            model=name,
            routeur_id=f"{self.config.name}/{name}",
            provider_client=self.client,
            **_asked(parameters),
        )

    async def list_models(self, within: float) -> list[ListedModel]:
        """Chat, embedding and audio models; others are left out."""
        found = []
        for entry in await listed_entries(self.client, within):
            kind: Kind | None = next((kind for word, kind in _KINDS if word in entry["id"]), "chat")
            if kind is not None:
                found.append(ListedModel(entry["id"], kind))
        return found

    async def embed(self, name: str, asked: EmbeddingRequest) -> Embedded:
        """In the encoding that the caller wants: base64 is handed on as it comes."""
        encoding = "base64" if asked.base64 else "float"
        return await post_embeddings(self.client, name, asked, dimensions=asked.dimensions, encoding_format=encoding)

    def speak(
        self, name: str, asked: SpeechRequest, patience: Patience = PROVIDERS_OWN
    ) -> AbstractAsyncContextManager[Spoken]:
        """As OpenAI says it; events only where they were asked for."""
        return post_speech(self.client, name, openai_payload(name, asked), patience)


def _asked(parameters: ModelParameters) -> dict[str, Any]:
    return given(
        parameters, temperature="temperature", max_tokens="max_tokens", top_p="top_p", stop="stop", seed="seed"
    )
