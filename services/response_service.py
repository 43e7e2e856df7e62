"""Runs as the Responses API sees them: found again, gone on from, cancelled, forgotten."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from domain.auth import Principal
from domain.errors import Conflict, NotFound, RouteurError
from domain.events import Envelope
from domain.ports import RecordStore, RecordWork
from domain.runs import ACTIVE, ENDED, Run
from domain.sessions import BranchPoint, RawMessage, Session
from services.run_events import with_an_end
from services.run_story import load_story
from services.session_service import SessionService

T = TypeVar("T")

_PAGE = 1_000
_LOOK_AGAIN = 0.05  # seconds
_PREFIX = "resp_"


#: Beside what a response repeats of its request: how its agent's tool calls are shown, which later readers cannot know.
VIEW = "tool_view"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response: its run, what it repeats of its request, what was asked, what was said, and all that it told.

    Attributes:
        view: how its agent's tool calls are shown.
    """

    run: Run
    echo: dict[str, Any]
    view: str
    asked: list[RawMessage]
    said: list[RawMessage]
    told: list[Envelope]


class ResponseService:
    """The use cases of stored responses. The owner is always the caller."""

    def __init__(self, store: RecordStore, sessions: SessionService) -> None:
        self._store = store
        self._sessions = sessions
        self._forgetting: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, response_id: str, caller: Principal) -> StoredResponse:
        """One response.

        Raises:
            NotFound: the caller has no such response (any more). So do all methods that name one.
        """
        async with self._store.reading() as work:
            run, echo = await _required(work, response_id, caller)
            messages = await _own_messages(work, run)
            told = list(load_story(run.id, await work.runs.events(run.id)))
        if run.status in ENDED:
            told = with_an_end(run, told)
        asked = int((run.request or {}).get("asked") or 0)
        shown = {name: value for name, value in echo.items() if name != VIEW}
        return StoredResponse(run, shown, str(echo.get(VIEW)), messages[:asked], messages[asked:], told)

    async def go_on_after(self, response_id: str, caller: Principal, begin: Callable[[str], Awaitable[T]]) -> T:
        """What `begin` makes of the session in which to go on after that response: its own, or a new branch of it when
        more was said there, or is being said. A branch in which nothing begins is not left behind.

        Raises:
            Conflict: it is still being made.
        """
        async with self._turns.setdefault(response_id, asyncio.Lock()):  # who looks next sees what has begun
            session, end = await self._end_of(response_id, caller)
            if end >= session.message_count:
                try:
                    return await begin(session.id)
                except Conflict as error:
                    if error.code != "session_busy":
                        raise
        branch = await self._sessions.branch(session.id, BranchPoint(before=end), caller)
        try:
            return await begin(branch.session_id)
        except RouteurError:
            await self.forget(branch.session_id, caller)
            raise

    async def _end_of(self, response_id: str, caller: Principal) -> tuple[Session, int]:
        """The session of a response that has ended, and the index after its last message."""
        param = "previous_response_id"
        async with self._store.reading() as work:
            run, _ = await _required(work, response_id, caller, param)
            session = await work.sessions.owned(run.session_id or "", caller.user_id)
            if session is None:
                raise _not_found(param)
            if run.status in ACTIVE:
                raise Conflict(
                    "The response is not finished yet.", code="response_in_progress", param=param, retry_after=1
                )
            own = await _own_messages(work, run)
        return session, own[-1].message_index + 1 if own else session.message_count

    async def delete(self, response_id: str, caller: Principal) -> None:
        """Forget it. Its conversation goes with it when it began it, and nothing else was said there.

        Raises:
            Conflict: it is still being made.
        """
        async with self._store.reading() as work:
            run, echo = await _required(work, response_id, caller)
            messages = await _messages(work, run.session_id)
        if run.status in ACTIVE:
            raise Conflict("The response is not finished yet; cancel it first.", code="response_in_progress")
        unnamed = echo.get("conversation") is None
        if run.session_id is not None and unnamed and all(raw.run_id == run.id for raw in messages):
            await self._sessions.delete(run.session_id, caller)
            return
        async with self._store.unit_of_work() as work:
            await work.runs.update_one(run.id, request={**(run.request or {}), "response": None})

    async def forget(self, session_id: str, caller: Principal) -> None:
        """Delete a conversation that is not to be kept, as soon as its run's end is written down.

        Whoever stops waiting for it does not stop it.
        """
        task = asyncio.create_task(self._forget(session_id, caller), name="forgetting")
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)
        await asyncio.shield(task)

    async def aclose(self, within: float = 2.0) -> None:
        """Wait for what is being forgotten; `within` that many seconds."""
        if self._forgetting:
            await asyncio.wait(self._forgetting, timeout=within)

    async def _forget(self, session_id: str, caller: Principal) -> None:
        while True:
            try:
                await self._sessions.delete(session_id, caller)
            except NotFound:
                return
            except Conflict:  # at most until its lease is over: nobody renews it any more
                await asyncio.sleep(_LOOK_AGAIN)
            else:
                return


def run_id_of(response_id: str) -> str:
    """The run that a response is.

    Raises:
        NotFound: that is no id of ours.
    """
    try:
        if not response_id.startswith(_PREFIX) or len(response_id) != len(_PREFIX) + 32:
            raise ValueError
        return str(UUID(hex=response_id.removeprefix(_PREFIX)))
    except ValueError:
        raise _not_found() from None


async def _required(
    work: RecordWork, response_id: str, caller: Principal, param: str = "response_id"
) -> tuple[Run, dict[str, Any]]:
    try:
        run = await work.runs.owned(run_id_of(response_id), caller.user_id)
    except NotFound:
        raise _not_found(param) from None
    echo = (run.request or {}).get("response") if run is not None else None
    if run is None or not isinstance(echo, dict):
        raise _not_found(param)
    return run, echo


async def _own_messages(work: RecordWork, run: Run) -> list[RawMessage]:
    """What it was asked and what it said; nothing of a session that is older is read for that."""
    later = await _messages(work, run.session_id, after=(run.first_index or 0) - 1)
    return [raw for raw in later if raw.run_id == run.id]


async def _messages(work: RecordWork, session_id: str | None, after: int = -1) -> list[RawMessage]:
    found: list[RawMessage] = []
    while session_id is not None:
        page = await work.raw_messages.find_by_session_id(session_id, after=after, limit=_PAGE)
        found += page
        if len(page) < _PAGE:
            break
        after = page[-1].message_index
    return found


def _not_found(param: str = "response_id") -> NotFound:
    return NotFound("There is no such response.", code="response_not_found", param=param)
