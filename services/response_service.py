"""Runs as the Responses API sees them: found again, gone on from, cancelled, forgotten."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from domain.auth import Principal
from domain.errors import Conflict, NotFound
from domain.ports import RecordStore, RecordWork
from domain.runs import ACTIVE, Run, RunFilter
from domain.sessions import BranchPoint, RawMessage
from services.session_service import SessionService

_PAGE = 1_000
_PREFIX = "resp_"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response: its run, what it repeats of its request, what was asked, and what was said and done."""

    run: Run
    echo: dict[str, Any]
    asked: list[RawMessage]
    said: list[RawMessage]


class ResponseService:
    """The use cases of stored responses. The owner is always the caller."""

    def __init__(self, store: RecordStore, sessions: SessionService) -> None:
        self._store = store
        self._sessions = sessions

    async def get(self, response_id: str, caller: Principal) -> StoredResponse:
        """One response.

        Raises:
            NotFound: the caller has no such response (any more). So do all methods that name one.
        """
        async with self._store.reading() as work:
            run, echo = await _required(work, response_id, caller)
            messages = [raw for raw in await _messages(work, run.session_id) if raw.run_id == run.id]
        asked = int((run.request or {}).get("asked") or 0)
        return StoredResponse(run, echo, messages[:asked], messages[asked:])

    async def session_after(self, response_id: str, caller: Principal) -> str:
        """The session in which to go on after that response: its own, or a branch of it when more was said there.

        Raises:
            Conflict: it is still being made.
        """
        async with self._store.reading() as work:
            run, _ = await _required(work, response_id, caller)
            session = await work.sessions.owned(run.session_id or "", caller.user_id)
            if session is None:
                raise _not_found()
            if run.status in ACTIVE:
                raise Conflict("The response is not finished yet.", code="response_in_progress", retry_after=1)
            own = [raw.message_index for raw in await _messages(work, session.id) if raw.run_id == run.id]
        end = own[-1] + 1 if own else session.message_count
        if end >= session.message_count:
            return session.id
        return (await self._sessions.branch(session.id, BranchPoint(before=end), caller)).session_id

    async def delete(self, response_id: str, caller: Principal) -> None:
        """Forget it. Its conversation goes with it when there was nothing else in it.

        Raises:
            Conflict: it is still being made.
        """
        async with self._store.reading() as work:
            run, _ = await _required(work, response_id, caller)
            others = await work.runs.find_runs(RunFilter(session_id=run.session_id), limit=2)
        if run.status in ACTIVE:
            raise Conflict("The response is not finished yet; cancel it first.", code="response_in_progress")
        if run.session_id is not None and len(others) == 1:
            await self._sessions.delete(run.session_id, caller)
            return
        async with self._store.unit_of_work() as work:
            await work.runs.update_one(run.id, request={**(run.request or {}), "response": None})

    async def forget(self, session_id: str, caller: Principal) -> None:
        """Delete the conversation of a response that was not to be kept."""
        await self._sessions.delete(session_id, caller)


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


async def _required(work: RecordWork, response_id: str, caller: Principal) -> tuple[Run, dict[str, Any]]:
    run = await work.runs.owned(run_id_of(response_id), caller.user_id)
    echo = (run.request or {}).get("response") if run is not None else None
    if run is None or not isinstance(echo, dict):
        raise _not_found()
    return run, echo


async def _messages(work: RecordWork, session_id: str | None) -> list[RawMessage]:
    found: list[RawMessage] = []
    after = -1
    while session_id is not None:
        page = await work.raw_messages.find_by_session_id(session_id, after=after, limit=_PAGE)
        found += page
        if len(page) < _PAGE:
            break
        after = page[-1].message_index
    return found


def _not_found() -> NotFound:
    return NotFound("There is no such response.", code="response_not_found", param="response_id")
