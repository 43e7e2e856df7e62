"""A typed repository over one or more tables: what sessions and runs have in common."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from core.surreal.connection import Row
from core.surreal.transaction import Transaction

Record = TypeVar("Record", bound=BaseModel)


class SurrealRepository(Generic[Record]):
    """What sessions and runs have in common."""

    record: type[Record]

    def __init__(self, work: Transaction) -> None:
        self._work = work

    def _tables(self) -> Sequence[str]:
        raise NotImplementedError

    def _row(self, record: Record) -> tuple[str, str, Row]:
        raise NotImplementedError

    async def create(self, record: Record) -> Record:
        """Store a new one; Conflict at the end of the unit of work when its id is taken."""
        self._work.create(*self._row(record))
        return record

    async def find_one(self, **equals: Any) -> Record | None:
        """One that fits."""
        if set(equals) <= {"id", "owner_id"} and "id" in equals:
            found = await self._by_id(equals["id"])
            return found if found is not None and equals.get("owner_id") in (None, _owner(found)) else None
        found_many = await self.find_many(limit=1, **equals)
        return found_many[0] if found_many else None

    async def find_many(self, *, limit: int = 100, **equals: Any) -> list[Record]:
        """Those that fit, in the order of their ids."""
        every: list[Record] = []
        for table in self._tables():
            every += self._read(await self._work.rows(f"SELECT data FROM {table}"))
        fits = [one for one in every if all(getattr(one, name) == value for name, value in equals.items())]
        return sorted(fits, key=lambda one: str(getattr(one, "id", "")))[:limit]

    async def update_one(self, record_id: str, **values: Any) -> bool:
        """Change fields of one."""
        found = await self._by_id(record_id)
        if found is None:
            return False
        before, _, _ = self._row(found)
        changed = found.model_copy(update=values)
        table, _, row = self._row(changed)
        if table != before:
            self._work.put(before, record_id, None)
        self._work.put(table, record_id, row)
        return True

    async def delete_one(self, record_id: str) -> bool:
        """Remove one."""
        found = await self._by_id(record_id)
        if found is None:
            return False
        self._work.put(self._row(found)[0], record_id, None)
        return True

    async def _by_id(self, record_id: str) -> Record | None:
        for table in self._tables():
            row = await self._work.row(table, record_id)
            if row is not None:
                return self._read([row])[0]
        return None

    def _read(self, rows: Sequence[Row]) -> list[Record]:
        return [self.record.model_validate_json(row["data"]) for row in rows]


def _owner(record: BaseModel) -> str:
    return str(getattr(record, "owner_id", ""))


def tagged(conditions: list[str], values: Row, metadata: dict[str, str]) -> None:
    for number, (key, value) in enumerate(metadata.items()):
        conditions.append(f"tags[$k{number}] = $v{number}")
        values |= {f"k{number}": key, f"v{number}": value}
