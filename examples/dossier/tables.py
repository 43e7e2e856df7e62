"""The application's own tables. The router knows nothing of them."""

import sqlite3
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel

_SCHEMA = """
CREATE TABLE IF NOT EXISTS dossier (id TEXT PRIMARY KEY, title TEXT NOT NULL, user_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS document (id TEXT PRIMARY KEY, dossier_id TEXT NOT NULL REFERENCES dossier(id),
    name TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS checklist (id TEXT PRIMARY KEY, dossier_id TEXT NOT NULL REFERENCES dossier(id),
    run_id TEXT NOT NULL UNIQUE, items TEXT NOT NULL);
"""


class Dossier(BaseModel):
    """A case. `user_id` is the notary who has it."""

    id: str
    title: str
    user_id: str


class Document(BaseModel):
    """A paper of a dossier."""

    id: str
    dossier_id: str
    name: str
    content: str


class Checklist(BaseModel):
    """What is still to be done, one item a line; `run_id` is the analysis it came from."""

    id: str
    dossier_id: str
    run_id: str
    items: str


class DossierTables:
    """Reads and writes. Small and quick, so done where it is asked."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.executescript(_SCHEMA)

    def add_dossier(self, title: str, user_id: str) -> Dossier:
        """Open a dossier."""
        dossier = Dossier(id=f"dossier:{uuid4().hex[:12]}", title=title, user_id=user_id)
        self._insert("dossier", dossier)
        return dossier

    def add_document(self, dossier_id: str, name: str, content: str) -> Document:
        """Put a paper into a dossier."""
        document = Document(id=f"document:{uuid4().hex[:12]}", dossier_id=dossier_id, name=name, content=content)
        self._insert("document", document)
        return document

    def add_checklist(self, dossier_id: str, run_id: str, items: str) -> Checklist:
        """Keep what an analysis found; once for each run."""
        checklist = Checklist(id=f"checklist:{uuid4().hex[:12]}", dossier_id=dossier_id, run_id=run_id, items=items)
        self._insert("checklist", checklist)
        return checklist

    def dossier(self, dossier_id: str) -> Dossier:
        """One dossier.

        Raises:
            KeyError: there is none.
        """
        row = self._connection.execute("SELECT id, title, user_id FROM dossier WHERE id = ?", (dossier_id,)).fetchone()
        if row is None:
            raise KeyError(dossier_id)
        return Dossier(id=row[0], title=row[1], user_id=row[2])

    def documents(self, dossier_id: str) -> list[Document]:
        """The papers of a dossier."""
        query = "SELECT id, dossier_id, name, content FROM document WHERE dossier_id = ? ORDER BY rowid"
        rows = self._connection.execute(query, (dossier_id,))
        return [Document(id=row[0], dossier_id=row[1], name=row[2], content=row[3]) for row in rows]

    def checklists(self, dossier_id: str) -> list[Checklist]:
        """Everything that analyses of a dossier found."""
        query = "SELECT id, dossier_id, run_id, items FROM checklist WHERE dossier_id = ? ORDER BY rowid"
        rows = self._connection.execute(query, (dossier_id,))
        return [Checklist(id=row[0], dossier_id=row[1], run_id=row[2], items=row[3]) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _insert(self, table: str, record: BaseModel) -> None:
        values = record.model_dump()
        marks = ", ".join("?" for _ in values)
        with self._connection:
            self._connection.execute(f"INSERT INTO {table} VALUES ({marks})", tuple(values.values()))  # noqa: S608
