"""Runs that another library made, written like our own: pydantic-ai's, LangChain's."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from uuid_utils import uuid7

from domain.auth import Principal
from domain.enums import RunStatus, SessionKind
from domain.ports import RecordStore
from domain.runs import CallCost, NewMessage, RunEnd, RunStart
from domain.sessions import MessageFormat
from domain.text import clean_text, one_line
from services.agent_messages import to_json
from services.message_transformer import MessageTransformer
from services.run_recorder import LEASE, RunRecorder

_TRANSFORMER = MessageTransformer()
_TITLE_CHARS = 80


@dataclass(frozen=True, slots=True)
class ForeignRun:
    """A run that another library made."""

    agent: str
    kind: SessionKind
    format: MessageFormat
    messages: list[dict[str, Any]]
    run_id: str
    session_id: str | None
    metadata: dict[str, Any]
    output: Any


def foreign_message(form: MessageFormat, data: dict[str, Any], at: datetime) -> NewMessage:
    """A message in the words of its library, to be stored."""
    return NewMessage(form, to_json(data), _TRANSFORMER.simple_parts(form, data), at)


class ForeignRuns:
    """Writes them."""

    def __init__(self, store: RecordStore, recorder: RunRecorder) -> None:
        self._store = store
        self._recorder = recorder

    async def store(self, foreign: ForeignRun, caller: Principal) -> int:
        """Write it like a run of our own; the index of its first message."""
        now = datetime.now(UTC)
        messages = [foreign_message(foreign.format, data, now) for data in foreign.messages]
        lines = [line for message in messages for line in message.simple]
        asked = next((line.content for line in lines if line.role == "user"), "")
        answer = next((line.content for line in reversed(lines) if line.role == "assistant"), None)
        calls = _TRANSFORMER.model_calls(foreign.format, foreign.messages)
        model = calls[-1][0] if calls else ""
        begun = await self._store.begin_run(
            RunStart(
                id=foreign.run_id,
                owner_id=caller.user_id,
                session_id=foreign.session_id or str(uuid7()),
                new_session=foreign.session_id is None,
                kind=foreign.kind,
                agent=foreign.agent,
                model=model,
                input=asked,
                messages=messages,
                metadata=foreign.metadata,
                created_at=now,
                lease_until=now + LEASE,
                worker=self._recorder.worker,
                title=one_line(asked.strip(), _TITLE_CHARS),
            )
        )
        output = foreign.output if isinstance(foreign.output, str) else answer
        await self._recorder.end(
            RunEnd(
                id=foreign.run_id,
                owner_id=caller.user_id,
                session_id=begun.session_id,
                agent=foreign.agent,
                status=RunStatus.COMPLETED,
                model=model,
                output=None if output is None else clean_text(output),
                finish_reason=None,
                error_code=None,
                error_message=None,
                messages=[],
                calls=[CallCost(name, usage, None) for name, usage in calls],
                events="[]",
                first_seq=1,
                last_seq=0,
                completed_at=datetime.now(UTC),
            )
        )
        return begun.first_index
