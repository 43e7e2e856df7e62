"""`WiredChat`: a chat model behind a provider's HTTP address. A vendor adds how to ask and how to read."""

import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator
from typing import Any

from langchain_core.messages import BaseMessage
from pydantic import Field

from core.http import PROVIDERS_OWN, Patience, ProviderClient
from domain.errors import UpstreamFailure
from services.llm_providers.wire import openai_wire
from services.llm_providers.wire.answer import Answer, Delta
from services.llm_providers.wire.routed import RoutedChat
from services.model_router import Route

logger = logging.getLogger(__name__)


class WiredChat(RoutedChat):
    """Sends through our client and reads what comes."""

    provider_client: ProviderClient | None = Field(None, exclude=True, repr=False)

    @abstractmethod
    def _ask(
        self, messages: list[BaseMessage], stop: list[str] | None, *, stream: bool, **kwargs: Any
    ) -> dict[str, Any]:
        """The JSON to send."""

    @abstractmethod
    def _path(self) -> str:
        """Where to send it, below the provider's address."""

    @abstractmethod
    def _read_line(self, answer: Answer, line: bytes) -> Delta | None:
        """What one line of the stream adds; notes usage and end in `answer`."""

    @abstractmethod
    def _read_whole(self, answer: Answer, body: dict[str, Any]) -> Delta:
        """The delta of an unstreamed answer."""

    async def _deltas(
        self,
        answer: Answer,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        route: Route | None = None,
    ) -> AsyncGenerator[list[Delta]]:
        """The pieces of a streamed answer, a list for each read of the socket."""
        client = self._wire()
        payload = self._ask(messages, stop, stream=True, **kwargs)
        read_line = self._read_line
        streamed = client.stream_lines(self._path(), payload, model=self.routeur_id, patience=_patience(route))
        async with streamed as batches:
            async for lines in batches:
                deltas = []
                try:
                    for line in lines:
                        delta = read_line(answer, line)
                        if delta is not None:
                            answer.add(delta)
                            deltas.append(delta)
                finally:
                    # What stood before a broken line has arrived, and is told.
                    if deltas:
                        yield deltas
                if answer.done:
                    break
        if answer.finish is None:
            logger.warning("provider broke off", extra={"provider": client.name})
            raise UpstreamFailure(f"The provider '{client.name}' broke off in the middle.", code="upstream_cut")

    async def _whole(
        self,
        answer: Answer,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        route: Route | None = None,
    ) -> Delta:
        """An unstreamed answer."""
        client = self._wire()
        payload = self._ask(messages, stop, stream=False, **kwargs)
        body = await client.post_json(self._path(), payload, model=self.routeur_id, patience=_patience(route))
        delta = self._read_whole(answer, body)
        answer.add(delta)
        if answer.finish is None:
            raise UpstreamFailure(f"The provider '{client.name}' broke off in the middle.", code="upstream_cut")
        return delta

    def _wire(self) -> ProviderClient:
        if self.provider_client is None:
            raise RuntimeError(f"{self.routeur_id} has no provider client")
        return self.provider_client


class CompletionsChat(WiredChat):
    """One that speaks the chat completions wire."""

    def _path(self) -> str:
        return openai_wire.COMPLETIONS

    def _read_line(self, answer: Answer, line: bytes) -> Delta | None:
        return openai_wire.read_line(self._wire(), answer, line)

    def _read_whole(self, answer: Answer, body: dict[str, Any]) -> Delta:
        return openai_wire.read_whole(self._wire(), answer, body)


def _patience(route: Route | None) -> Patience:
    """The deployment's own, and no second try while another deployment is well."""
    if route is None or (route.timeout is None and not route.spare):
        return PROVIDERS_OWN
    return Patience(route.timeout, 0 if route.spare else None)
