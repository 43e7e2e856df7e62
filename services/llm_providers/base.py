"""What `LLMService` asks of a provider. Each vendor file defines one class, `Provider`, that does this."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from pydantic import SecretStr

from core.http import Deadlines, ProviderClient
from domain.agents import ModelParameters
from domain.models import Abilities
from services.llm_providers.wire.routed import RoutedChat


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
    running_usage: bool = False  # tells what it has counted with every piece, when asked to (vLLM)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as its provider lists it; None where it does not say."""

    name: str
    kind: Literal["chat", "embedding", "transcription", "speech"] = "chat"
    description: str = ""
    context_window: int | None = None
    abilities: Abilities = field(default_factory=Abilities)


class BaseProvider(ABC):
    """One provider: its client and the chat models it makes."""

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

    async def aclose(self) -> None:
        """Close its connections."""
        await self.client.aclose()
