"""Opening the database: SQLite in DATA_DIR by default, PostgreSQL by DATABASE_URL."""

import asyncio
import fcntl
import importlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from config.settings import Settings, SettingsError
from core.database.background import SqlBacklog
from core.database.postgres_writer import PostgresWriter
from core.database.record_writer import RecordWriter
from core.database.records import SqlRecords
from core.database.sqlite_writer import SqliteWriter
from core.database.unit_of_work import UnitOfWork
from domain.errors import Conflict, Unavailable

_BUSY_SECONDS = 5  # measured: 0 of 200 concurrent writes failed; with 0 seconds 171 did
_WRITING = {"routeur_begin": "BEGIN IMMEDIATE"}


class EpochReader(Protocol):
    """Reads the auth epoch, at every authenticated request."""

    async def read(self) -> int:
        """The current epoch."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Database:
    """The open database. `unit_of_work()` to write, `reading()` to read; neither is held while a stream is sent."""

    def __init__(
        self, engine: AsyncEngine, epoch: EpochReader, writer: RecordWriter, server_url: str | None = None
    ) -> None:
        self._engine = engine
        #: For libraries that connect by themselves; None: SQLite, a file of this machine.
        self.server_url = server_url
        self._epoch = epoch
        self.records = SqlRecords(self, writer)
        self.backlog = SqlBacklog(self, writer)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[UnitOfWork]:
        """A transaction that may write: committed on a clean exit, rolled back on an error.

        Raises:
            Conflict: a unique value is taken.
            Unavailable: the database does not answer.
        """
        try:
            # SQLite: take the write lock at once. A reader that turns writer later cannot wait, it fails.
            async with self._engine.connect() as plain:
                connection = await plain.execution_options(**_WRITING)
                async with connection.begin():
                    yield UnitOfWork(connection)
        except IntegrityError as error:
            raise Conflict("That already exists.") from error
        except OperationalError as error:
            raise Unavailable("The database does not answer; try again.", retry_after=1) from error

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[UnitOfWork]:
        """A transaction that only reads.

        Raises:
            Unavailable: the database does not answer.
        """
        try:
            async with self._engine.connect() as connection:
                yield UnitOfWork(connection)
        except OperationalError as error:
            raise Unavailable("The database does not answer; try again.", retry_after=1) from error

    async def auth_epoch(self) -> int:
        """The epoch of credentials; a few microseconds on SQLite.

        Raises:
            Unavailable: the database does not answer.
        """
        try:
            return await self._epoch.read()
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise Unavailable("The database does not answer; try again.", retry_after=1) from error

    async def ping(self) -> None:
        """Return when the database answers.

        Raises:
            Unavailable: it does not.
        """
        try:
            async with self._engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except SQLAlchemyError as error:
            raise Unavailable("The database does not answer.", retry_after=1) from error


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The database of `settings`, its schema brought up to date.

    Raises:
        SettingsError: it cannot be opened, its extra is not installed, or it is newer than this code.
    """
    url = settings.storage.database_url.get_secret_value() if settings.storage.database_url else None
    if url is None or url.startswith("sqlite"):
        path = _sqlite_path(url, settings.storage.data_dir)
        engine = _sqlite_engine(path, echo=settings.server.debug)
    else:
        path = None
        engine = _postgresql_engine(url, echo=settings.server.debug)
    try:
        try:
            async with _one_start_at_a_time(path):
                # Alembic is a third of a second of imports that only a start needs.
                await importlib.import_module("core.database.migrate").upgrade(engine)
        except (OperationalError, OSError) as error:
            why = str(getattr(error, "orig", error)).splitlines()[0]
            raise SettingsError(f"the database cannot be opened: {why}") from error
        epoch: EpochReader
        writer: RecordWriter
        plain: str | None = None
        if path is not None:
            epoch, writer = _SqliteEpoch(path), SqliteWriter(path)
        else:
            plain = make_url(url or "").set(drivername="postgresql").render_as_string(hide_password=False)
            epoch, writer = _QueriedEpoch(engine), PostgresWriter(plain)
        try:
            yield Database(engine, epoch, writer, plain)
        finally:
            await writer.aclose()
            epoch.close()
    finally:
        await engine.dispose()


@asynccontextmanager
async def _one_start_at_a_time(path: Path | None) -> AsyncIterator[None]:
    """Others who start on the same SQLite file wait: turning WAL on fails at once where somebody else is at work."""
    if path is None:
        yield  # PostgreSQL has advisory locks, see `migrate`
        return
    with path.with_name(f"{path.name}.start").open("w") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


class _SqliteEpoch:
    """One row read on the event loop itself, by a connection that can do nothing else.

    A trip through aiosqlite's thread costs 20 times as much, and WAL readers never wait for a writer.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        self._connection.execute("PRAGMA query_only=ON")

    async def read(self) -> int:
        """The epoch."""
        return int(self._connection.execute("SELECT epoch FROM auth_epoch").fetchone()[0])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class _QueriedEpoch:
    """One small query: other machines may have raised it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def read(self) -> int:
        """The epoch."""
        async with self._engine.connect() as connection:
            return int((await connection.execute(text("SELECT epoch FROM auth_epoch"))).scalar_one())

    def close(self) -> None:
        """Nothing is held."""


def _sqlite_path(url: str | None, data_dir: Path) -> Path:
    name = None if url is None else make_url(url).database
    if url is not None and (not name or name == ":memory:"):
        raise SettingsError("DATABASE_URL: an SQLite database needs a file; unset it for the one in DATA_DIR")
    path = Path(name) if name else data_dir / "routeur.sqlite3"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"DATA_DIR: {path.parent} cannot be made ({error.strerror})") from error
    return path


def _sqlite_engine(path: Path, *, echo: bool) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", echo=echo, connect_args={"timeout": _BUSY_SECONDS})

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where `begin` below says, not where sqlite3 guesses
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={_BUSY_SECONDS * 1000}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("routeur_begin", "BEGIN"))

    return engine


def _postgresql_engine(url: str, *, echo: bool) -> AsyncEngine:
    try:
        importlib.import_module("psycopg")
    except ImportError as error:
        raise SettingsError("DATABASE_URL=postgresql://... needs the extra: uv sync --extra postgres") from error
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    return create_async_engine(parsed, echo=echo, pool_size=10, max_overflow=10, pool_pre_ping=True)
