"""A typed repository over one table: rows in, frozen pydantic records out."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy import ColumnElement, RowMapping, Table, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

Record = TypeVar("Record", bound=BaseModel)


class Repository(Generic[Record]):
    """What every table can do. All of it happens in the unit of work that owns the connection."""

    table: Table
    record: type[Record]

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, record: Record) -> Record:
        """Insert it.

        Raises:
            sqlalchemy.exc.IntegrityError: a unique column holds that value already.
        """
        await self._connection.execute(insert(self.table).values(self._values(record)))
        return record

    async def get(self, record_id: str) -> Record | None:
        """The one with that id."""
        return await self.find_one(self.table.c.id == record_id)

    async def find_one(self, *conditions: ColumnElement[bool], **equals: Any) -> Record | None:
        """The first that fits; `equals` are values of the record's own fields."""
        query = select(self.table).where(*conditions, *self._equal(equals)).limit(1)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else self._record(row)

    async def find_many(
        self,
        *conditions: ColumnElement[bool],
        order_by: Sequence[ColumnElement[Any]] = (),
        limit: int = 1_000,
        **equals: Any,
    ) -> list[Record]:
        """Those that fit, at most `limit`; in the order of their key when no other is asked for."""
        query = select(self.table).where(*conditions, *self._equal(equals))
        query = query.order_by(*(order_by or self.table.primary_key.columns)).limit(limit)
        return [self._record(row) for row in (await self._connection.execute(query)).mappings()]

    async def update_one(self, record_id: str, **values: Any) -> bool:
        """Change fields of one; False when there is none of that id."""
        return await self.update(self.table.c.id == record_id, **values) == 1

    async def delete_one(self, record_id: str) -> bool:
        """Remove one; False when there was none."""
        return await self.delete(self.table.c.id == record_id) == 1

    async def update(self, *conditions: ColumnElement[bool], **values: Any) -> int:
        """Change those that fit; how many there were. With a condition on the old value it is a compare-and-set."""
        return (await self._connection.execute(update(self.table).where(*conditions).values(values))).rowcount

    async def delete(self, *conditions: ColumnElement[bool]) -> int:
        """Remove those that fit; how many there were."""
        return (await self._connection.execute(delete(self.table).where(*conditions))).rowcount

    def _equal(self, equals: dict[str, Any]) -> list[ColumnElement[bool]]:
        return [self.table.c[name] == value for name, value in equals.items()]

    def _record(self, row: RowMapping) -> Record:
        return self.record.model_validate(dict(row))

    def _values(self, record: Record) -> dict[str, Any]:
        """Column values; sets and tuples become lists for the JSON columns, sets in order."""
        values = {}
        for name in type(record).model_fields:
            value = getattr(record, name)
            if isinstance(value, frozenset):
                value = sorted(value)
            values[name] = list(value) if isinstance(value, tuple) else value
        return values
