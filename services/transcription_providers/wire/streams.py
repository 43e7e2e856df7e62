"""Transcription in pieces, as OpenAI and Mistral send it."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from core.http import Form, ProviderClient
from domain.audio import SpanTranscript
from domain.errors import UpstreamFailure
from domain.text import clean_text
from services.transcription_providers.wire.answers import read_answer, read_frame

Pieces = AsyncIterator[str | SpanTranscript]


@asynccontextmanager
async def stream_pieces(
    client: ProviderClient, form: Form, *, path: str, model: str, delta: tuple[str, str], done: str
) -> AsyncIterator[Pieces]:
    """The words as they come, the whole transcript at the end.

    Args:
        delta: the type of the events that bring words, and where these stand in it.
        done: the type of the last event.

    Raises:
        RouteurError: as `ProviderClient.stream_form`; also while iterating.
    """
    async with (
        client.stream_form(path, form, model=model) as lines,
        aclosing(_read(client, lines, delta, done)) as told,
    ):
        yield told


async def _read(
    client: ProviderClient, lines: AsyncIterator[list[bytes]], delta: tuple[str, str], done: str
) -> AsyncGenerator[str | SpanTranscript]:
    kind, place = delta
    async for many in lines:
        for line in many:
            event: dict[str, Any] | None = read_frame(client, line)
            if event is None:
                continue
            if event.get("type") == kind and isinstance(event.get(place), str):
                yield clean_text(event[place])
            elif event.get("type") == done:
                yield read_answer(client, event, words=False)
                return
    raise UpstreamFailure(f"The provider '{client.name}' broke off in the middle.", code="upstream_cut")
