"""Sessions and their messages, raw and simplified."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, func, insert, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database import tables
from core.database.record_scripts import Codec, append_messages
from core.database.repositories.base import Repository
from core.database.script_runner import run_script_on
from domain.runs import ACTIVE, Cursor, ModelCall, NewMessage, counted_columns, metadata_text
from domain.sessions import RawMessage, Session, SessionUsage, SimpleMessage
from domain.usage import Usage, from_pico


class SessionRepository(Repository[Session]):
    """Sessions. Every question names the owner."""

    table = tables.sessions
    record = Session

    async def create(self, record: Session) -> Session:
        """Insert it, with its metadata index."""
        await super().create(record)
        await self._index(record.id, record.owner_id, record.metadata)
        return record

    async def create_session(self, session: Session) -> Session:
        """`create`."""
        return await self.create(session)

    async def owned(self, session_id: str, owner_id: str) -> Session | None:
        """The session, when it is that owner's."""
        return await self.find_one(id=session_id, owner_id=owner_id)

    async def update_session(self, session_id: str, owner_id: str, **values: Any) -> bool:
        """Change an owner's session; False: they have none of that id."""
        mine = (self.table.c.id == session_id, self.table.c.owner_id == owner_id)
        if await self.update(*mine, **values) == 0:
            return False
        if "metadata" in values:
            index = tables.session_metadata
            await self._connection.execute(delete(index).where(index.c.session_id == session_id))
            await self._index(session_id, owner_id, values["metadata"])
        return True

    async def delete_session(self, session_id: str, owner_id: str) -> bool:
        """Remove it; foreign keys take messages, runs and events along, and leave model calls behind."""
        calls, runs = tables.model_calls, tables.runs
        of_it = select(runs.c.id).where(runs.c.session_id == session_id, runs.c.owner_id == owner_id)
        await self._connection.execute(update(calls).where(calls.c.run_id.in_(of_it)).values(session_id=None))
        return await self.delete(self.table.c.id == session_id, self.table.c.owner_id == owner_id) == 1

    async def find_by_agent_id(
        self, agent: str, owner_id: str, *, limit: int = 50, after: Cursor | None = None
    ) -> list[Session]:
        """An owner's sessions with one agent, the latest used first."""
        return await self._latest(limit, after, self.table.c.owner_id == owner_id, self.table.c.agent == agent)

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
        conditions: list[ColumnElement[bool]] = [self.table.c.owner_id == owner_id]
        if kind is not None:
            conditions.append(self.table.c.kind == kind)
        if agent is not None:
            conditions.append(self.table.c.agent == agent)
        index = tables.session_metadata
        for key, value in (metadata or {}).items():
            fits = (index.c.owner_id == owner_id, index.c.key == key, index.c.value == value)
            conditions.append(self.table.c.id.in_(select(index.c.session_id).where(*fits)))
        return await self._latest(limit, after, *conditions)

    async def ids(self, *, after: str, limit: int) -> list[str]:
        """Ids of anybody's sessions above `after`, in order."""
        query = select(self.table.c.id).where(self.table.c.id > after).order_by(self.table.c.id).limit(limit)
        return list((await self._connection.execute(query)).scalars())

    async def idle_since(self, moment: datetime, limit: int, kind: str | None = None) -> list[Session]:
        """Sessions of anybody not used since then, the oldest first; none with a run in progress."""
        runs = tables.runs
        busy = exists().where(runs.c.session_id == self.table.c.id, runs.c.status.in_(sorted(ACTIVE)))
        # Ids begin with the time they were made: what was made later cannot be idle for that long. No index is needed.
        conditions = [self.table.c.id < _first_id(moment), self.table.c.updated_at < moment, ~busy]
        if kind is not None:
            conditions.append(self.table.c.kind == kind)
        return await self.find_many(*conditions, order_by=[self.table.c.id.asc()], limit=limit)

    async def _latest(self, limit: int, after: Cursor | None, *conditions: ColumnElement[bool]) -> list[Session]:
        place = tuple_(self.table.c.used_at, self.table.c.id)
        if after is not None:
            before = tuple_(literal(after.at, self.table.c.used_at.type), literal(after.id, self.table.c.id.type))
            conditions = (*conditions, place < before)
        order = [self.table.c.used_at.desc(), self.table.c.id.desc()]
        return await self.find_many(*conditions, order_by=order, limit=limit)

    async def _index(self, session_id: str, owner_id: str, metadata: dict[str, Any]) -> None:
        rows = [
            {"session_id": session_id, "owner_id": owner_id, "key": key, "value": metadata_text(value)}
            for key, value in metadata.items()
        ]
        if rows:
            await self._connection.execute(insert(tables.session_metadata), rows)


class RawMessageRepository:
    """Raw messages: appended and read; `cut` alone changes one."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create_for_session(
        self, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None = None
    ) -> list[int]:
        """The first messages of a session; as `append_to_session`."""
        return await self.append_to_session(session_id, owner_id, messages, run_id)

    async def append_to_session(
        self, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None = None
    ) -> list[int]:
        """Append; the indexes given.

        Raises:
            NotFound: the owner has no such session.
        """
        codec = Codec(self._connection.dialect.name)
        return await run_script_on(
            self._connection, append_messages(codec, session_id, owner_id, messages, run_id, datetime.now(UTC))
        )

    async def cut(self, raw: RawMessage, lines: Sequence[SimpleMessage]) -> None:
        """Put `raw` in the place of the message of its index, and its lines in the simple view."""
        for table in (tables.raw_messages, tables.simple_messages):
            place = (table.c.session_id == raw.session_id, table.c.message_index == raw.message_index)
            await self._connection.execute(delete(table).where(*place))
        await self._connection.execute(insert(tables.raw_messages), [raw.model_dump()])
        if lines:
            await self._connection.execute(insert(tables.simple_messages), [line.model_dump() for line in lines])

    async def find_by_session_id(self, session_id: str, *, after: int = -1, limit: int = 1_000) -> list[RawMessage]:
        """Messages with an index above `after`, in order."""
        table = tables.raw_messages
        query = select(table).where(table.c.session_id == session_id, table.c.message_index > after)
        rows = await self._connection.execute(query.order_by(table.c.message_index).limit(limit))
        return [RawMessage.model_validate(dict(row)) for row in rows.mappings()]


class SimpleMessageRepository:
    """The simplified view."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find_by_session_id(self, session_id: str, *, after: int = -1, limit: int = 1_000) -> list[SimpleMessage]:
        """Lines of raw messages with an index above `after`, in order; those of one raw message stay together."""
        table = tables.simple_messages
        query = select(table).where(table.c.session_id == session_id, table.c.message_index > after)
        query = query.order_by(table.c.message_index, table.c.part).limit(limit + 1)
        found = [SimpleMessage.model_validate(dict(row)) for row in (await self._connection.execute(query)).mappings()]
        if len(found) <= limit:
            return found
        last = found[limit].message_index  # it did not fit: leave all of its lines to the next page
        whole = [line for line in found if line.message_index < last]
        return whole or found[:limit]

    async def replace_for_session(self, session_id: str, messages: Sequence[SimpleMessage]) -> None:
        """Put these in the place of all there are."""
        table = tables.simple_messages
        await self._connection.execute(delete(table).where(table.c.session_id == session_id))
        if messages:
            await self._connection.execute(insert(table), [message.model_dump() for message in messages])


class ModelCallRepository:
    """What model calls cost."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def usage_of_session(self, session_id: str) -> SessionUsage:
        """Sums over the calls of one session."""
        table, runs = tables.model_calls, tables.runs
        counted = [func.sum(table.c[name]) for name in _SUMMED]
        unmeasured = func.count().filter(table.c.total_tokens.is_(None))
        unpriced = func.count().filter(table.c.total_tokens.is_not(None), table.c.cost_pico.is_(None))
        estimated = func.count().filter(table.c.estimated)
        query = select(func.count(), unmeasured, unpriced, estimated, *counted).where(
            table.c.run_id.in_(select(runs.c.id).where(runs.c.session_id == session_id))
        )
        calls, missing, without_price, guessed, *sums = (await self._connection.execute(query)).one()
        values = dict(zip(_SUMMED, sums, strict=True))
        cost = values.pop("cost_pico")
        usage = None
        if values["total_tokens"] is not None:
            counts = {name: None if value is None else int(value) for name, value in values.items()}
            usage = Usage.model_validate({**counts, "estimated": guessed > 0})
        return SessionUsage(
            usage=usage,
            cost=None if cost is None else from_pico(int(cost)),
            calls=calls,
            unmeasured_calls=missing,
            unpriced_calls=without_price,
        )

    async def of_run(self, run_id: str) -> list[ModelCall]:
        """The calls of one run, in order."""
        table = tables.model_calls
        query = select(table).where(table.c.run_id == run_id).order_by(table.c.id)
        return [ModelCall.model_validate(dict(row)) for row in (await self._connection.execute(query)).mappings()]

    async def outside_runs(self, owner_id: str, *, limit: int = 100) -> list[ModelCall]:
        """An owner's calls that were no part of a run, newest first. A run's calls name its agent, also without it."""
        table = tables.model_calls
        query = select(table).where(table.c.run_id.is_(None), table.c.owner_id == owner_id, table.c.agent == "")
        query = query.order_by(table.c.id.desc()).limit(limit)
        return [ModelCall.model_validate(dict(row)) for row in (await self._connection.execute(query)).mappings()]


_SUMMED = tuple(name for name in counted_columns(None, None) if name != "estimated")


def _first_id(moment: datetime) -> str:
    """The smallest UUIDv7 of that millisecond."""
    stamp = f"{int(moment.timestamp() * 1_000):012x}"
    return f"{stamp[:8]}-{stamp[8:]}"
