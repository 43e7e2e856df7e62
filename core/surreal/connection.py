"""The embedded engine: opened once, by one process, its tables and indexes made."""

import fcntl
import importlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from config.settings import SettingsError
from domain.errors import Conflict, Unavailable

RUNS, RAW, SIMPLE, CALLS, EVENTS = "workflow_runs", "raw_messages", "simple_messages", "model_calls", "run_events"
SESSIONS = {"agent": "agent_sessions", "workflow": "workflow_sessions", "team": "team_sessions"}

_INDEXES = {
    RUNS: {"by_owner": "owner_id, created_at", "by_session": "session_id", "by_state": "run_status"},
    RAW: {"by_session": "session_id, message_index"},
    SIMPLE: {"by_session": "session_id, message_index"},
    CALLS: {"by_session": "session_id", "by_run": "run_id"},
    EVENTS: {"by_run": "run_id"},
    **{table: {"by_owner": "owner_id, used_at"} for table in SESSIONS.values()},
}

Row = dict[str, Any]


class Engine:
    """Queries, their failures in our words. The engine works in threads of its own: the event loop goes on."""

    def __init__(self, database: Any, record_id: Any) -> None:
        self._database = database
        self.record_id = record_id

    async def rows(self, query: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        """The rows of one statement.

        Raises:
            Unavailable: the engine does not answer.
        """
        found = (await self._run(query, values))[-1]
        return found if isinstance(found, list) else []

    async def transaction(self, statements: list[str], values: Mapping[str, Any]) -> None:
        """All of the statements, or none.

        Raises:
            Conflict: a record of that id is there already.
            Unavailable: the engine does not answer.
        """
        if statements:
            await self._run("BEGIN; " + "; ".join(statements) + "; COMMIT;", values)

    async def _run(self, query: str, values: Mapping[str, Any] | None) -> list[Any]:
        try:
            answer = await self._database.query_raw(query, dict(values or {}))
        except Exception as error:  # the SDK raises many kinds, all of them ours to explain
            raise Unavailable("The session store does not answer.", retry_after=1) from error
        if "error" in answer:
            raise Unavailable("The session store does not answer.", retry_after=1) from RuntimeError(answer["error"])
        failed = [str(one["result"]) for one in answer["result"] if one["status"] != "OK"]
        if failed:
            if any("already exists" in reason for reason in failed):
                raise Conflict("That already exists.")
            raise Unavailable("The session store does not answer.", retry_after=1) from RuntimeError(failed[0])
        return [one["result"] for one in answer["result"]]


@asynccontextmanager
async def open_engine(url: str, namespace: str, database: str) -> AsyncIterator[Engine]:
    """The engine at `mem://` or `surrealkv://<folder>`.

    Raises:
        SettingsError: the extra is missing, the address is another kind, or another process has it open.
    """
    try:
        surrealdb = importlib.import_module("surrealdb")
    except ImportError as error:
        raise SettingsError("SESSION_STORE_URL=surrealkv://... needs the extra: uv sync --extra surreal") from error
    scheme, _, place = url.partition("://")
    if scheme not in ("mem", "surrealkv") or (scheme == "surrealkv" and not place):
        raise SettingsError(
            "SESSION_STORE_URL: must be mem:// or surrealkv://<folder>; the embedded engine has no server"
        )
    with _alone(Path(place) if scheme == "surrealkv" else None):
        connection = surrealdb.AsyncSurreal(url)
        await connection.connect()
        try:
            await connection.use(namespace, database)
            engine = Engine(connection, surrealdb.RecordID)
            for table, indexes in _INDEXES.items():
                await engine.rows(f"DEFINE TABLE IF NOT EXISTS {table} SCHEMALESS")
                for name, fields in indexes.items():
                    await engine.rows(f"DEFINE INDEX IF NOT EXISTS {name} ON {table} FIELDS {fields}")
            yield engine
        finally:
            await connection.close()


class _alone:  # noqa: N801 - reads as what it does
    """Only one process may have the folder open: the engine itself would let a second one in, and lose data."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file: Any = None

    def __enter__(self) -> None:
        if self._folder is None:
            return
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._folder.with_name(f"{self._folder.name}.lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise SettingsError(
                f"SESSION_STORE_URL: {self._folder} is open in another process, and the embedded engine takes one"
            ) from error

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
