"""An empty database of each engine, for the contract suites."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from config.settings import Settings, StorageSettings
from core.database.engine import Database, open_database
from core.surreal.store import open_surreal_store
from domain.ports import RecordStore
from domain.users import User
from tests.engines import ENGINES, POSTGRES_URL

#: Every store that keeps sessions and runs. SurrealDB's engine is in its wheel: it is always there.
STORES = (*ENGINES, "surreal")
OWNERS = ("ada", "bob")


@asynccontextmanager
async def new_storage(engine: str, folder: Path) -> AsyncIterator[Settings]:
    """Settings for an empty database of that engine, gone with the context."""
    if engine == "sqlite":
        yield Settings(storage=StorageSettings(data_dir=folder))
        return
    assert POSTGRES_URL is not None
    name = f"test_{uuid.uuid4().hex}"
    server = make_url(POSTGRES_URL).set(drivername="postgresql+psycopg")
    admin = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with admin.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
    yield Settings(storage=StorageSettings(data_dir=folder, database_url=SecretStr(url)))
    async with admin.connect() as connection:
        await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    await admin.dispose()


@asynccontextmanager
async def open_store(engine: str, folder: Path) -> AsyncIterator[RecordStore]:
    """A record store of that engine that knows OWNERS."""
    if engine == "surreal":
        async with open_surreal_store("mem://") as store:
            yield store
        return
    async with new_storage(engine, folder) as settings, open_database(settings) as database:
        await add_owners(database)
        yield database.records


async def add_owners(database: Database) -> None:
    """The users whose ids are OWNERS."""
    now = datetime.now(UTC)
    async with database.unit_of_work() as work:
        for name in OWNERS:
            await work.users.create(
                User(id=name, username=name, password_hash="x", scopes=frozenset(), created_at=now, updated_at=now)
            )
