"""One contract, every engine: what the identity tables promise."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Connection, text

from config.settings import Settings, SettingsError, StorageSettings
from core.database import tables
from core.database.engine import Database, open_database
from domain.auth import Scope
from domain.errors import Conflict, Unavailable
from domain.users import ApiKey, RefreshToken, User
from tests.contracts.storage import new_storage
from tests.engines import ENGINES

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture(params=ENGINES)
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Settings]:
    """An empty database of that engine."""
    async with new_storage(request.param, tmp_path) as settings:
        yield settings


@pytest.fixture
async def database(storage: Settings) -> AsyncIterator[Database]:
    async with open_database(storage) as opened:
        yield opened


def user(name: str = "ada") -> User:
    return User(
        id=str(uuid.uuid4()), username=name, password_hash="$argon2id$x", scopes=frozenset({Scope.ADMIN, Scope.RUNS}),
        created_at=NOW, updated_at=NOW,
    )  # fmt: skip


def refresh(owner: User, family: str = "f", **more: object) -> RefreshToken:
    made = RefreshToken(
        id=str(uuid.uuid4()), user_id=owner.id, family=family, token_hash=uuid.uuid4().hex, scopes=owner.scopes,
        created_at=NOW, expires_at=NOW + timedelta(days=1),
    )  # fmt: skip
    return made.model_copy(update=more)


async def test_what_is_written_comes_back_the_same(database: Database) -> None:
    ada = user()
    key = ApiKey(
        id="k", user_id=ada.id, name="ci 日本", hint="rk_", key_hash="h", scopes=frozenset({Scope.RUNS}),
        models=("a/b",), created_at=NOW, expires_at=NOW.astimezone(),
    )  # fmt: skip
    token = refresh(ada)
    async with database.unit_of_work() as work:
        await work.users.create(ada)
        await work.api_keys.create(key)
        await work.refresh_tokens.create(token)
    async with database.reading() as work:
        assert await work.users.get(ada.id) == await work.users.by_name("ada") == ada
        assert await work.api_keys.by_hash("h") == key
        assert await work.refresh_tokens.by_hash(token.token_hash) == token
        assert await work.users.get("nobody") is None


async def test_an_error_undoes_the_whole_unit_of_work(database: Database) -> None:
    async def half() -> None:
        async with database.unit_of_work() as work:
            await work.users.create(user())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        await half()
    async with database.reading() as work:
        assert await work.users.all() == []


async def test_a_taken_name_is_a_conflict(database: Database) -> None:
    async with database.unit_of_work() as work:
        await work.users.create(user("ada"))
    with pytest.raises(Conflict):
        async with database.unit_of_work() as work:
            await work.users.create(user("ada"))


async def test_a_token_is_used_by_exactly_one_of_many(database: Database) -> None:
    ada = user()
    token = refresh(ada)
    async with database.unit_of_work() as work:
        await work.users.create(ada)
        await work.refresh_tokens.create(token)

    async def use() -> bool:
        async with database.unit_of_work() as work:
            return await work.refresh_tokens.use(token.id, NOW)

    assert sorted(await asyncio.gather(*(use() for _ in range(12)))) == [False] * 11 + [True]


async def test_revoking_a_family_leaves_the_others(database: Database) -> None:
    ada = user()
    async with database.unit_of_work() as work:
        await work.users.create(ada)
        for family in ("f", "f", "g"):
            await work.refresh_tokens.create(refresh(ada, family))
        assert await work.refresh_tokens.revoke_family("f", NOW) == 2
    async with database.reading() as work:
        assert not await work.refresh_tokens.is_live("f", ada.id)
        assert await work.refresh_tokens.is_live("g", ada.id)
        assert not await work.refresh_tokens.is_live("g", "somebody else")


async def test_a_removed_user_takes_their_credentials_along(database: Database) -> None:
    ada = user()
    token = refresh(ada)
    async with database.unit_of_work() as work:
        await work.users.create(ada)
        await work.refresh_tokens.create(token)
    async with database.unit_of_work() as work:
        assert await work.users.remove(ada.id)
        assert not await work.users.remove(ada.id)
    async with database.reading() as work:
        assert await work.refresh_tokens.by_hash(token.token_hash) is None


async def test_failures_are_counted_once_each_however_many_come_at_once(database: Database) -> None:
    async def fail() -> int:
        async with database.unit_of_work() as work:
            return await work.login_failures.count("k", NOW, NOW - timedelta(days=1))

    assert sorted(await asyncio.gather(*(fail() for _ in range(20)))) == list(range(1, 21))
    async with database.unit_of_work() as work:
        await work.login_failures.block("k", NOW + timedelta(seconds=5))
        assert await work.login_failures.blocked_until(["k", "other"]) == NOW + timedelta(seconds=5)
        late = NOW + timedelta(days=2)
        assert await work.login_failures.count("k", late, late - timedelta(days=1)) == 1, "old failures are forgiven"


async def test_the_epoch_moves_for_every_process_at_once(storage: Settings) -> None:
    async with open_database(storage) as one, open_database(storage) as other:
        before = await other.auth_epoch()
        async with one.unit_of_work() as work:
            await work.auth_epoch.raise_()
            assert await other.auth_epoch() == before, "not before it is committed"
        assert await other.auth_epoch() == before + 1


async def test_two_processes_may_start_at_once_on_an_empty_database(storage: Settings) -> None:
    async def start() -> int:
        async with open_database(storage) as database:
            return await database.auth_epoch()

    assert await asyncio.gather(*(start() for _ in range(8))) == [1] * 8


async def test_the_migrations_make_exactly_the_tables_of_the_code(storage: Settings) -> None:
    async with open_database(storage) as database:
        engine = database._engine

        def difference(connection: Connection) -> list[object]:
            options = {"include_object": lambda _o, name, *_: not (name or "").endswith("_gin")}  # PostgreSQL's alone
            return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata))

        async with engine.connect() as connection:
            assert await connection.run_sync(difference) == []


async def test_a_database_of_a_newer_version_is_refused(storage: Settings) -> None:
    async with open_database(storage) as database, database._engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingsError, match="newer version"):
        async with open_database(storage):
            pass


async def test_a_naive_moment_is_refused(database: Database) -> None:
    with pytest.raises(Exception, match="naive"):
        async with database.unit_of_work() as work:
            await work.users.create(user().model_copy(update={"created_at": datetime(2026, 1, 1)}))  # noqa: DTZ001


async def test_readers_do_not_wait_for_a_writer_and_writers_take_turns(tmp_path: Path) -> None:
    async with open_database(Settings(storage=StorageSettings(data_dir=tmp_path))) as database:
        inside, leave = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with database.unit_of_work() as work:
                await work.users.create(user("first"))
                inside.set()
                await leave.wait()

        holding = asyncio.create_task(hold())
        await inside.wait()
        async with database.reading() as work:
            assert await work.users.all() == []

        async def write() -> None:
            async with database.unit_of_work() as work:
                await work.users.create(user("second"))

        waiting = asyncio.create_task(write())
        leave.set()
        await asyncio.gather(holding, waiting)
        async with database.reading() as work:
            assert [one.username for one in await work.users.all()] == ["first", "second"]


async def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="DATA_DIR"):
        async with open_database(Settings(storage=StorageSettings(data_dir=tmp_path / "file" / "data"))):
            pass


async def test_a_server_that_is_not_there_is_said_so(tmp_path: Path, unused_address: str) -> None:
    url = SecretStr(f"postgresql://u:hunter2@{unused_address.removeprefix('http://')}/x")
    with pytest.raises((SettingsError, Unavailable)) as caught:
        async with open_database(Settings(storage=StorageSettings(data_dir=tmp_path, database_url=url))):
            pass
    assert "hunter2" not in str(caught.value)
