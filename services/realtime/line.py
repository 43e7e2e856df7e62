"""The line between one conversation and its client: what is told, what is refused, and what is done beside it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from domain.auth import Principal
from domain.errors import RouteurError
from services.realtime.answers import Question
from services.realtime.items import ASKED_BY_THE_HOUSE, Item, Items
from services.realtime.outbox import Outbox
from services.realtime.response import Event
from services.realtime.seams import VoiceSeams
from services.realtime.waiting import Answer
from services.wire_messages import WireMessage

SOUND = "output_audio"


class AsksAnswers(Protocol):
    """Begins answers (`answers.Answers`)."""

    async def begin(self, question: Question) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What a conversation needs of the house.

    Attributes:
        history: what the stored session holds already, as messages of chat completions.
        describe: a failure as OpenAI's clients are told of it: message, type, param, code.
        cut: leaves of a recorded message, named by its id, only that text.
    """

    caller: Principal
    answers: AsksAnswers
    history: Callable[[], Awaitable[Sequence[WireMessage]]]
    describe: Callable[[RouteurError], dict[str, Any]]
    voice: VoiceSeams = field(default_factory=VoiceSeams)
    cut: Callable[[str, str], Awaitable[None]] | None = None


class Line:
    """What all parts of a conversation share.

    Attributes:
        items: of the conversation.
    """

    def __init__(self, terms: Terms, outbox: Outbox) -> None:
        self.terms = terms
        self.outbox = outbox
        self.items = Items()
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, event: Event) -> None:
        """One event, to the client."""
        self.outbox.put(event)

    def tell_sound(self, event: Event) -> None:
        """One event that may be dropped while it waits (`hush`)."""
        self.outbox.put(event, SOUND)

    def hush(self) -> None:
        """Tell no sound that waits."""
        self.outbox.drop(SOUND)

    def announce(self, item: Item, before: str | None) -> None:
        """A new item, which is whole."""
        for what in ("added", "done"):
            self.tell({"type": f"conversation.item.{what}", "previous_item_id": before, "item": item.shown})

    def refuse(self, error: RouteurError, event_id: str | None = None) -> None:
        """What could not be done."""
        self.tell({"type": "error", "error": {**self.terms.describe(error), "event_id": event_id}})

    def failure(self, error: RouteurError) -> Event:
        """A failure, as a response tells it."""
        told = self.terms.describe(error)
        return {name: told[name] for name in ("type", "code", "message")}

    async def cut_record(self, record_id: str, text: str) -> None:
        """Leave of a recorded message only that; a client is told when it cannot be done."""
        if self.terms.cut is None or record_id.startswith(ASKED_BY_THE_HOUSE):
            return
        try:
            await self.terms.cut(record_id, text)
        except RouteurError as error:
            self.refuse(error)

    def later(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do it beside what is heard; the next response waits for it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait for what is done beside: clients commit and ask in one breath."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def aclose(self) -> None:
        """Stop all of that."""
        await stopped(self._tasks)


async def stopped(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel them, and wait until they are over."""
    going = list(tasks)
    for task in going:
        task.cancel()
    for task in going:
        with suppress(asyncio.CancelledError):
            await task
