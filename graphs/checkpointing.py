"""What an agent remembers beyond its messages: LangGraph's checkpoints, one thread for each session.

The record holds every message of a session, so an agent whose state is its messages needs nothing else (ADR 6). A
graph with more state (a plan, a counter, a draft) is given LangGraph's own saver: SQLite beside the database, or the
schema `checkpoints` of PostgreSQL. Nothing is opened before such an agent is called.
"""

import asyncio
import importlib
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.channels import EphemeralValue, Topic, UntrackedValue
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph.state import CompiledStateGraph

from config.settings import Settings
from domain.errors import Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHECKPOINTS_AWAY = "checkpoints_unavailable"
_PATIENCE = 20.0  # seconds for which a database that is away is waited for
_SETUP_LOCK = 7_203_518_867  # pg_try_advisory_lock

#: Known from the record, or made anew by each run.
_FROM_THE_RECORD = frozenset({"messages", "structured_response"})
#: The index of the session's message with which a run began: written into the metadata of its checkpoints.
FIRST_INDEX = "routeur_first_index"
#: The run that wrote a checkpoint, in its metadata too: only that run may go on from it.
RUN_ID = "routeur_run_id"


def remembers_more(graph: CompiledStateGraph[Any, Any, Any, Any]) -> bool:
    """True when the state of `graph` holds what its messages do not tell."""
    return any(
        not isinstance(channel, EphemeralValue | Topic | UntrackedValue) and name not in _FROM_THE_RECORD
        for name, channel in graph.channels.items()
        if not name.startswith(("__", "branch:"))
    )


class Checkpoints:
    """LangGraph's saver for these settings, opened when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        url = settings.storage.database_url
        self._url = None if url is None else url.get_secret_value()
        self._path = settings.storage.data_dir / "checkpoints.sqlite3"
        self._saver: BaseCheckpointSaver[Any] | None = None
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        #: For runs that end while somebody waits for them: nothing is written unless they come to `keep` it.
        self.held = InMemorySaver(serde=_strict())

    async def saver(self) -> BaseCheckpointSaver[Any]:
        """The saver; its tables are made when they are missing."""
        async with self._opening:
            if self._saver is None:
                postgresql = self._url is not None and not self._url.startswith("sqlite")
                self._saver = await (self._open_postgresql() if postgresql else self._open_sqlite())
            return self._saver

    async def latest(self, thread_id: str, run_id: str) -> str | None:
        """The id of the thread's latest checkpoint, when that run has written it."""
        found = await (await self.saver()).aget_tuple(_thread(thread_id))
        if found is None or cast(dict[str, Any], found.metadata).get(RUN_ID) != run_id:
            return None
        return found.checkpoint["id"]

    async def keep(self, thread_id: str) -> None:
        """Write down what is `held` of a thread: from then on somebody else can go on from it."""
        saver = await self.saver()
        for found in reversed(list(self.held.list(_anywhere(thread_id)))):
            place = found.config["configurable"]
            parent = found.parent_config or _thread(thread_id, place["checkpoint_ns"])
            versions = found.checkpoint["channel_versions"]
            saved = await saver.aput(parent, found.checkpoint, found.metadata, versions)
            writes: dict[str, list[tuple[str, Any]]] = {}
            for task, channel, value in found.pending_writes or ():
                writes.setdefault(task, []).append((channel, value))
            for task, some in writes.items():
                await saver.aput_writes(saved, some, task)

    def let_go(self, thread_id: str) -> None:
        """Hold nothing of that thread any more."""
        if thread_id in self.held.storage:
            self.held.delete_thread(thread_id)

    async def forget(self, session_id: str) -> None:
        """Delete every checkpoint of a session."""
        if self._exists():
            await (await self.saver()).adelete_thread(session_id)

    async def cut(self, session_id: str, message_id: str, text: str) -> None:
        """Leave only `text` of a message that the latest checkpoint of a session remembers."""
        if not self._exists():
            return
        saver = await self.saver()
        found = await saver.aget_tuple(_thread(session_id))
        messages = None if found is None else found.checkpoint["channel_values"].get("messages")
        if found is None or not isinstance(messages, list):
            return
        place = next((at for at, one in enumerate(messages) if getattr(one, "id", None) == message_id), None)
        if place is None:
            return
        cut = [*messages[:place], messages[place].model_copy(update={"content": text}), *messages[place + 1 :]]
        checkpoint = found.checkpoint.copy()
        version = saver.get_next_version(checkpoint["channel_versions"]["messages"], None)
        checkpoint["channel_values"] = {**checkpoint["channel_values"], "messages": cut}
        checkpoint["channel_versions"] = {**checkpoint["channel_versions"], "messages": version}
        parent = found.parent_config or _thread(session_id)
        await saver.aput(parent, checkpoint, found.metadata, {"messages": version})

    async def copy(self, session_id: str, branch_id: str, before: int) -> int | None:
        """Give a branch what its session remembered before its message `before`.

        A checkpoint of a run that began at or after `before` is later than the branch. The index at which the run of
        the one that was copied began (what follows is in it, too, by the messages' ids); None: there was nothing.
        """
        if not self._exists():
            return None
        saver = await self.saver()
        latest: tuple[int, CheckpointTuple] | None = None
        async with aclosing(cast(AsyncGenerator[CheckpointTuple], saver.alist(_thread(session_id)))) as every:
            async for found in every:
                first = int(cast(dict[str, Any], found.metadata).get(FIRST_INDEX, 0))
                if first < before:
                    latest = first, found
                    break
        if latest is None:  # and only now, because the saver lets nobody in while it is being listed
            return None
        first, found = latest
        await saver.aput(_thread(branch_id), found.checkpoint, found.metadata, found.checkpoint["channel_versions"])
        return first

    async def aclose(self) -> None:
        """Close what was opened."""
        await self._stack.aclose()

    def _exists(self) -> bool:
        """False when no agent has ever needed a checkpoint here; PostgreSQL is always asked."""
        return self._saver is not None or self._url is not None or self._path.exists()

    async def _open_sqlite(self) -> BaseCheckpointSaver[Any]:
        aiosqlite = importlib.import_module("aiosqlite")
        module = importlib.import_module("langgraph.checkpoint.sqlite.aio")
        path = self._path if self._url is None else Path(self._url.partition(":///")[2]).with_name(self._path.name)
        connection = await self._stack.enter_async_context(aiosqlite.connect(path))
        saver: BaseCheckpointSaver[Any] = _patient(module.AsyncSqliteSaver, sqlite3.OperationalError)(
            connection, serde=_strict()
        )
        await saver.setup()  # type: ignore[attr-defined]
        # In the log it survives this process, and nobody has been told of it: no waiting for the disk at every step.
        await connection.execute("PRAGMA synchronous=NORMAL")
        return saver

    async def _open_postgresql(self) -> BaseCheckpointSaver[Any]:
        pools = importlib.import_module("psycopg_pool")
        module = importlib.import_module("langgraph.checkpoint.postgres.aio")
        pool = pools.AsyncConnectionPool(
            self._url,
            open=False,
            min_size=1,
            max_size=10,
            kwargs={
                "autocommit": True,
                "prepare_threshold": 0,
                "row_factory": importlib.import_module("psycopg.rows").dict_row,
                "options": "-c search_path=checkpoints",
            },
        )
        await self._stack.enter_async_context(pool)
        errors = importlib.import_module("psycopg").OperationalError
        saver: BaseCheckpointSaver[Any] = _patient(module.AsyncPostgresSaver, errors)(pool, serde=_strict())
        async with pool.connection() as connection, _one_at_a_time(connection):
            await connection.execute("CREATE SCHEMA IF NOT EXISTS checkpoints")
            await saver.setup()  # type: ignore[attr-defined]
        return saver


@asynccontextmanager
async def _one_at_a_time(connection: Any) -> AsyncIterator[None]:
    """Others who make the same tables wait.

    They ask again and again: to wait inside a statement would hold up the saver's own CREATE INDEX CONCURRENTLY.
    """
    while True:
        got = await connection.execute("SELECT pg_try_advisory_lock(%s) AS got", (_SETUP_LOCK,))
        if (await got.fetchone())["got"]:
            break
        await asyncio.sleep(0.05)
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s)", (_SETUP_LOCK,))


def _patient(saver: Any, errors: type[Exception]) -> Any:
    """That class of saver, waiting for its database where it is away for a moment: a restart need not end a run.

    Raises:
        Unavailable: (from the saver's methods) it stays away.
    """

    async def insist(work: Callable[[], Awaitable[T]]) -> T:
        until, pause = time.monotonic() + _PATIENCE, 0.1
        while True:
            try:
                return await work()
            except errors as error:
                if time.monotonic() > until:
                    raise Unavailable("The checkpoints cannot be reached.", code=CHECKPOINTS_AWAY) from error
                logger.warning("checkpoints cannot be reached; tried again", extra={"why": str(error)[:200]})
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    class Patient(saver):  # type: ignore[misc]
        async def aput(self, *given: Any, **more: Any) -> Any:
            return await insist(lambda: super(Patient, self).aput(*given, **more))

        async def aput_writes(self, *given: Any, **more: Any) -> Any:
            return await insist(lambda: super(Patient, self).aput_writes(*given, **more))

        async def aget_tuple(self, *given: Any, **more: Any) -> Any:
            return await insist(lambda: super(Patient, self).aget_tuple(*given, **more))

        async def adelete_thread(self, *given: Any, **more: Any) -> Any:
            return await insist(lambda: super(Patient, self).adelete_thread(*given, **more))

    return Patient


def _thread(session_id: str, namespace: str = "") -> RunnableConfig:
    return {"configurable": {"thread_id": session_id, "checkpoint_ns": namespace}}


def _anywhere(thread_id: str) -> RunnableConfig:
    """In the graph and its subgraphs."""
    return {"configurable": {"thread_id": thread_id}}


def _strict() -> JsonPlusSerializer:
    """Only plain data and LangChain's messages come back: a checkpoint never names a class to be built."""
    return JsonPlusSerializer(allowed_msgpack_modules=None)
