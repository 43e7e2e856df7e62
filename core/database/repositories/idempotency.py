"""Idempotency keys: who is working on one, and what was answered."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database import tables


class IdempotencyRow(BaseModel):
    """One key of one owner. `lease_until` set: somebody is working on it; else `answer` is what was answered."""

    model_config = ConfigDict(frozen=True)

    owner_id: str
    key_hash: str
    fingerprint: str
    lease_until: datetime | None
    status_code: int | None
    answer: bytes | None
    created_at: datetime


class IdempotencyRepository:
    """Keys by owner."""

    table = tables.idempotency_keys

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, owner_id: str, key_hash: str) -> IdempotencyRow | None:
        """The key, when the owner has used it."""
        row = (
            (await self._connection.execute(select(self.table).where(*self._is(owner_id, key_hash)))).mappings().first()
        )
        return None if row is None else IdempotencyRow.model_validate(dict(row))

    async def claim(self, row: IdempotencyRow) -> None:
        """Take it. Raises IntegrityError (a Conflict outside) when somebody was faster."""
        await self._connection.execute(insert(self.table).values(row.model_dump()))

    async def renew(self, owner_id: str, key_hash: str, lease_until: datetime) -> None:
        """Still at work."""
        await self._connection.execute(
            update(self.table)
            .where(*self._is(owner_id, key_hash), self.table.c.answer.is_(None))
            .values(lease_until=lease_until)
        )

    async def keep(self, owner_id: str, key_hash: str, status_code: int, answer: bytes) -> None:
        """This was answered."""
        values = {"lease_until": None, "status_code": status_code, "answer": answer}
        await self._connection.execute(update(self.table).where(*self._is(owner_id, key_hash)).values(values))

    async def forget(self, owner_id: str, key_hash: str) -> None:
        """As if it had never been used."""
        await self._connection.execute(delete(self.table).where(*self._is(owner_id, key_hash)))

    async def sweep(self, before: datetime, limit: int) -> int:
        """Forget keys from before that moment, at most `limit`; how many there were."""
        old = select(self.table.c.owner_id, self.table.c.key_hash).where(self.table.c.created_at < before).limit(limit)
        found = (await self._connection.execute(old)).all()
        for owner_id, key_hash in found:
            await self.forget(owner_id, key_hash)
        return len(found)

    def _is(self, owner_id: str, key_hash: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return self.table.c.owner_id == owner_id, self.table.c.key_hash == key_hash
