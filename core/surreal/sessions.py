"""Sessions and their messages."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from core.surreal.connection import CALLS, EVENTS, RAW, RUNS, SESSIONS, SIMPLE, Row
from core.surreal.repository import SurrealRepository, tagged
from core.surreal.runs import call_row
from core.surreal.transaction import Transaction
from domain.errors import NotFound
from domain.runs import ACTIVE, Cursor, ModelCall, NewMessage, metadata_text
from domain.sessions import RawMessage, Session, SimpleMessage


class SessionRepository(SurrealRepository[Session]):
    """Sessions: each in the table of its kind."""

    record = Session

    def _tables(self) -> Sequence[str]:
        return list(SESSIONS.values())

    def _row(self, record: Session) -> tuple[str, str, Row]:
        kind = record.kind.value
        row = {
            "session_id": record.id,
            f"{kind}_name": record.agent,
            "agent": record.agent,
            "owner_id": record.owner_id,
            "state": record.state,
            "agents": record.agents,
            "metadata": record.metadata,
            "tags": {key: metadata_text(value) for key, value in record.metadata.items()},
            "created_at": record.created_at,
            "updated_at": record.updated_at,
            "used_at": record.used_at,
            "data": record.model_dump_json(),
        }
        return SESSIONS[kind], record.id, row

    async def create_session(self, session: Session) -> Session:
        """`create`."""
        return await self.create(session)

    async def owned(self, session_id: str, owner_id: str) -> Session | None:
        """The session, when it is that owner's."""
        return await self.find_one(id=session_id, owner_id=owner_id)

    async def required(self, session_id: str, owner_id: str) -> Session:
        """The session; NotFound when it is not that owner's."""
        found = await self.owned(session_id, owner_id)
        if found is None:
            raise NotFound("There is no such session.", code="session_not_found", param="session_id")
        return found

    async def update_session(self, session_id: str, owner_id: str, **values: Any) -> bool:
        """Change an owner's session."""
        return await self.owned(session_id, owner_id) is not None and await self.update_one(session_id, **values)

    async def delete_session(self, session_id: str, owner_id: str) -> bool:
        """Remove it with messages, runs and events; its calls stay, and no longer say whose session they were of."""
        if await self.owned(session_id, owner_id) is None:
            return False
        work = self._work
        await self.delete_one(session_id)
        for table in (RAW, SIMPLE, RUNS, EVENTS):
            work.delete_where(table, "session_id", session_id)
        for row in await work.rows(f"SELECT * FROM {CALLS} WHERE session_id = $s", s=session_id):
            call = ModelCall.model_validate_json(row["data"]).model_copy(update={"session_id": None, "run_id": None})
            work.put(CALLS, row["id"].id, call_row(call))
        return True

    async def find_by_agent_id(
        self, agent: str, owner_id: str, *, limit: int = 50, after: Cursor | None = None
    ) -> list[Session]:
        """An owner's sessions with one agent, the latest used first."""
        return await self.find_recent_sessions(owner_id, limit=limit, after=after, agent=agent)

    async def find_recent_sessions(
        self,
        owner_id: str,
        *,
        limit: int = 50,
        after: Cursor | None = None,
        metadata: dict[str, str] | None = None,
        kind: str | None = None,
        agent: str | None = None,
    ) -> list[Session]:
        """An owner's sessions, the latest used first."""
        tables = list(SESSIONS.values()) if kind is None else [SESSIONS[kind]]
        conditions, values = ["owner_id = $owner"], {"owner": owner_id, "limit": limit}
        if agent is not None:
            conditions.append("agent = $agent")
            values["agent"] = agent
        tagged(conditions, values, metadata or {})
        if after is not None:
            conditions.append("(used_at < $at OR (used_at = $at AND session_id < $id))")
            values |= {"at": after.at, "id": after.id}
        found: list[Session] = []
        for table in tables:
            found += self._read(
                await self._work.engine.rows(
                    f"SELECT data, used_at, session_id FROM {table} WHERE {' AND '.join(conditions)}"
                    " ORDER BY used_at DESC, session_id DESC LIMIT $limit",
                    values,
                )
            )
        return sorted(found, key=lambda one: (one.used_at, one.id), reverse=True)[:limit]

    async def ids(self, *, after: str, limit: int) -> list[str]:
        """Ids of anybody's sessions above `after`, in order."""
        found: list[str] = []
        for table in SESSIONS.values():
            rows = await self._work.rows(f"SELECT session_id FROM {table} WHERE session_id > $after", after=after)
            found += [row["session_id"] for row in rows]
        return sorted(found)[:limit]

    async def idle_since(self, moment: datetime, limit: int, kind: str | None = None) -> list[Session]:
        """Sessions of anybody not used since then and with no run in progress, the oldest first."""
        active = await self._work.rows(
            f"SELECT session_id FROM {RUNS} WHERE run_status IN $active",
            active=sorted(status.value for status in ACTIVE),
        )
        busy = {row.get("session_id") for row in active}
        found: list[Session] = []
        for table in SESSIONS.values() if kind is None else [SESSIONS[kind]]:
            found += self._read(await self._work.rows(f"SELECT data FROM {table} WHERE updated_at < $at", at=moment))
        return sorted((one for one in found if one.id not in busy), key=lambda one: one.id)[:limit]


class RawMessageRepository:
    """Raw messages."""

    def __init__(self, work: Transaction, sessions: SessionRepository) -> None:
        self._work = work
        self._sessions = sessions

    async def create_for_session(
        self, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None = None
    ) -> list[int]:
        """The first messages of a session; as `append_to_session`."""
        return await self.append_to_session(session_id, owner_id, messages, run_id)

    async def append_to_session(
        self, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None = None
    ) -> list[int]:
        """Append; the indexes given. NotFound: the owner has no such session."""
        session = await self._sessions.required(session_id, owner_id)
        now = datetime.now(UTC)
        self.write(session, messages, run_id)
        count = session.message_count + len(messages)
        await self._sessions.update_one(session_id, message_count=count, updated_at=now, used_at=now)
        return list(range(session.message_count, count))

    def write(self, session: Session, messages: Sequence[NewMessage], run_id: str | None) -> None:
        """The rows of messages that come after those of `session`."""
        for index, message in enumerate(messages, session.message_count):
            place: Row = {"session_id": session.id, "message_index": index, "run_id": run_id}
            row = {**place, "format": message.format, "data": message.data, "timestamp": message.created_at}
            self._work.create(RAW, f"{session.id}_{index:09}", row)
            for number, part in enumerate(message.simple):
                line = SimpleMessage.model_validate(
                    {
                        **place,
                        "part": number,
                        "role": part.role,
                        "kind": part.kind,
                        "content": part.content,
                        "name": part.name,
                        "model": part.model,
                        "partial": part.partial,
                        "timestamp": message.created_at,
                    }
                )
                self._work.create(SIMPLE, *_line_row(line))

    async def cut(self, raw: RawMessage, lines: Sequence[SimpleMessage]) -> None:
        """Put `raw` in the place of the message of its index, and its lines in the simple view."""
        place: Row = {"session_id": raw.session_id, "message_index": raw.message_index, "run_id": raw.run_id}
        data = orjson.dumps(raw.message_data).decode()
        row = {**place, "format": raw.format, "data": data, "timestamp": raw.timestamp}
        self._work.put(RAW, f"{raw.session_id}_{raw.message_index:09}", row)
        old = await self._work.rows(
            f"SELECT part FROM {SIMPLE} WHERE session_id = $s AND message_index = $at",
            s=raw.session_id,
            at=raw.message_index,
        )
        for one in old:
            self._work.put(SIMPLE, f"{raw.session_id}_{raw.message_index:09}_{one['part']:04}", None)
        for line in lines:
            self._work.put(SIMPLE, *_line_row(line))

    async def find_by_session_id(self, session_id: str, *, after: int = -1, limit: int = 1_000) -> list[RawMessage]:
        """Messages with an index above `after`, in order."""
        rows = await self._work.rows(
            f"SELECT * FROM {RAW} WHERE session_id = $s AND message_index > $after ORDER BY message_index LIMIT $limit",
            s=session_id,
            after=after,
            limit=limit,
        )
        return [
            RawMessage(
                session_id=session_id,
                message_index=row["message_index"],
                run_id=row.get("run_id"),
                format=row["format"],
                message_data=orjson.loads(row["data"]),
                timestamp=row["timestamp"],
            )
            for row in rows
        ]


class SimpleMessageRepository:
    """The simplified view."""

    def __init__(self, work: Transaction) -> None:
        self._work = work

    async def find_by_session_id(self, session_id: str, *, after: int = -1, limit: int = 1_000) -> list[SimpleMessage]:
        """Lines of raw messages with an index above `after`, in order; those of one raw message stay together."""
        rows = await self._work.rows(
            f"SELECT data, message_index, part FROM {SIMPLE} WHERE session_id = $s AND message_index > $after"
            " ORDER BY message_index, part LIMIT $limit",
            s=session_id,
            after=after,
            limit=limit + 1,
        )
        found = [SimpleMessage.model_validate_json(row["data"]) for row in rows]
        if len(found) <= limit:
            return found
        last = found[limit].message_index
        return [line for line in found if line.message_index < last] or found[:limit]

    async def replace_for_session(self, session_id: str, messages: Sequence[SimpleMessage]) -> None:
        """Put these in the place of all there are."""
        self._work.delete_where(SIMPLE, "session_id", session_id)
        for message in messages:
            self._work.create(SIMPLE, *_line_row(message))


def _line_row(line: SimpleMessage) -> tuple[str, Row]:
    place = {"session_id": line.session_id, "message_index": line.message_index, "part": line.part}
    shown = {"role": line.role.value, "content": line.content, "timestamp": line.timestamp}
    record_id = f"{line.session_id}_{line.message_index:09}_{line.part:04}"
    return record_id, {**place, **shown, "data": line.model_dump_json()}
