"""One transaction: what is read comes from the engine, what is written waits until the end and is written at once.

Each row holds the record itself as JSON text (`data`), so that it comes back exactly as it was (the engine drops
nulls), and beside it the fields that are looked for, under the names that the workflow tables have elsewhere.
"""

from typing import Any

from core.surreal.connection import Engine, Row

_Key = tuple[str, str]  # table, id


class Transaction:
    """Reads and waiting writes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pending: dict[_Key, Row | None] = {}
        self._created: set[_Key] = set()
        self._deletes: list[tuple[str, str, str]] = []

    def create(self, table: str, record_id: str, row: Row) -> None:
        """A new row; a conflict at the end when there is one of that id."""
        self.pending[table, record_id] = row
        self._created.add((table, record_id))

    def put(self, table: str, record_id: str, row: Row | None) -> None:
        """Replace a row, or remove it (None)."""
        self.pending[table, record_id] = row

    def delete_where(self, table: str, field: str, value: str) -> None:
        """Remove rows by a field."""
        self._deletes.append((table, field, value))

    async def rows(self, query: str, **values: Any) -> list[Row]:
        """What the engine has, apart from what waits."""
        return await self.engine.rows(query, values)

    async def row(self, table: str, record_id: str) -> Row | None:
        """One row, as this transaction sees it."""
        if (table, record_id) in self.pending:
            return self.pending[table, record_id]
        found = await self.engine.rows("SELECT * FROM $id", {"id": self.engine.record_id(table, record_id)})
        return found[0] if found else None

    async def commit(self) -> None:
        """Write everything that waits."""
        statements: list[str] = []
        values: Row = {}
        for number, (table, field, value) in enumerate(self._deletes):
            statements.append(f"DELETE {table} WHERE {field} = $d{number}")
            values[f"d{number}"] = value
        for number, ((table, record_id), row) in enumerate(self.pending.items()):
            values[f"i{number}"] = self.engine.record_id(table, record_id)
            if row is None:
                statements.append(f"DELETE $i{number}")
                continue
            verb = "CREATE" if (table, record_id) in self._created else "UPSERT"
            statements.append(f"{verb} $i{number} CONTENT $r{number}")
            values[f"r{number}"] = {name: value for name, value in row.items() if name != "id"}
        await self.engine.transaction(statements, values)
