"""What `LLMService` asks of a provider. Each vendor file defines one class, `Provider`, that does this."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import SecretStr

from core.http import PROVIDERS_OWN, Deadlines, Patience, ProviderClient, ProviderSocket
from domain.agents import ModelParameters
from domain.embeddings import Embedded, EmbeddingRequest
from domain.errors import InvalidRequest
from domain.models import Abilities
from domain.speech import SpeechRequest, Spoken
from services.llm_providers.wire.completions import COMPATIBLE, Vendor
from services.llm_providers.wire.routed import RoutedChat

ModelKind = Literal["chat", "embedding", "transcription", "speech"]


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """Where a provider is and how it is reached."""

    name: str
    vendor: str
    base_url: str
    api_key: SecretStr | None
    source: Literal["setting", "loopback", "embedded"]
    setting: str
    default_model: str | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    max_connections: int = 200
    folder: Path | None = None  # of weights on this machine
    running_usage: bool = False  # tells what it has counted with every piece, when asked to (vLLM)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as its provider lists it; None where it does not say."""

    name: str
    kind: ModelKind = "chat"
    description: str = ""
    context_window: int | None = None
    abilities: Abilities = field(default_factory=Abilities)


class BaseProvider(ABC):
    """One provider: its client and the chat models it makes.

    Attributes:
        vendor: what its chat completions take, asked directly.
        completions_path: where they are, below its address.
        realtime_path: where its own Realtime sockets are; None: it has none.
    """

    vendor: ClassVar[Vendor] = COMPATIBLE
    completions_path: ClassVar[str] = "/chat/completions"
    realtime_path: ClassVar[str | None] = None

    def __init__(self, config: ProviderConfig) -> None:
        self.config = config
        key = config.api_key.get_secret_value() if config.api_key else None
        self.client = ProviderClient(
            config.name,
            config.base_url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            deadlines=config.deadlines,
            max_connections=config.max_connections,
            setting=config.setting,
        )

    @abstractmethod
    def chat_model(self, name: str, parameters: ModelParameters) -> RoutedChat:
        """A chat model of that name. Cheap: nothing is connected.

        Raises:
            InvalidRequest: a parameter that this vendor does not take; `param` names it.
        """

    @abstractmethod
    async def list_models(self, within: float) -> list[ListedModel]:
        """What the provider offers, asked `within` that many seconds.

        Raises:
            RouteurError: it does not answer.
        """

    # -- a caller's own body, without LangChain between (`services/direct_service.py`) --

    def completions_body(self, name: str, asked: Mapping[str, Any], *, streamed: bool) -> dict[str, Any]:
        """A chat completions body as this vendor wants it.

        Raises:
            InvalidRequest: a parameter that this vendor does not take; `param` names it.
        """
        return self.vendor.body(name, asked, streamed=streamed, running_usage=self.config.running_usage)

    async def completion(
        self, body: dict[str, Any], model: str, patience: Patience = PROVIDERS_OWN
    ) -> tuple[bytes, dict[str, Any]]:
        """The whole answer to `completions_body`, as it came and as JSON. Raises as `ProviderClient.post_json`."""
        return await self.client.post_for_bytes(self.completions_path, body, model=model, patience=patience)

    def completion_reads(
        self, body: dict[str, Any], model: str, patience: Patience = PROVIDERS_OWN
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The streamed answer, as `ProviderClient.stream_reads` gives it."""
        return self.client.stream_reads(self.completions_path, body, model=model, patience=patience)

    async def embed(self, name: str, asked: EmbeddingRequest) -> Embedded:
        """The vectors that the model of that name gives, as they came.

        Raises:
            InvalidRequest: this vendor has no embeddings, or does not take what was asked; `param` names it.
            RouteurError: of the upstream kinds.
        """
        raise InvalidRequest(
            f"The provider '{self.config.name}' has no embeddings.", code="embeddings_not_supported", param="model"
        )

    def speak(
        self, name: str, asked: SpeechRequest, patience: Patience = PROVIDERS_OWN
    ) -> AbstractAsyncContextManager[Spoken]:
        """What the model of that name says. Leaving the context ends the provider's work.

        Raises:
            InvalidRequest: this vendor does not speak, or does not take what was asked; `param` names it.
            RouteurError: of the upstream kinds; when entered, and while iterating.
        """
        raise InvalidRequest(
            f"The provider '{self.config.name}' does not speak.", code="speech_not_supported", param="model"
        )

    async def realtime(self, name: str) -> ProviderSocket:
        """A Realtime session of the model of that name.

        Raises:
            InvalidRequest: this vendor has none.
            RouteurError: of the upstream kinds.
        """
        if self.realtime_path is None:
            raise InvalidRequest(
                f"The provider '{self.config.name}' has no realtime models.",
                code="realtime_not_supported",
                param="model",
            )
        return await self.client.open_socket(self.realtime_path, {"model": name}, model=f"{self.config.name}/{name}")

    async def aclose(self) -> None:
        """Close its connections."""
        await self.client.aclose()
