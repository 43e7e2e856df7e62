"""The batching writer: nobody is told before it is on the disk, and nobody's fault is another's."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings, StorageSettings
from core.database.engine import Database, open_database
from core.database.record_scripts import Codec, Script
from core.database.sqlite_writer import SqliteWriter
from domain.errors import Conflict, InternalError, NotFound, Unavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(Settings(storage=StorageSettings(data_dir=tmp_path))) as opened:
        writer = opened.records.writer
        await writer.submit(lambda _: one("CREATE TABLE note (id INTEGER PRIMARY KEY, word TEXT UNIQUE)", {}))
        yield opened


def one(sql: str, values: Any) -> Script[Any]:
    return (yield sql, values)


def note(word: Any) -> Any:
    def script(codec: Codec) -> Script[None]:
        yield "INSERT INTO note (word) VALUES (:word)", {"word": word}

    return script


def words(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "routeur.sqlite3")) as connection:
        return [row[0] for row in connection.execute("SELECT word FROM note ORDER BY id")]


async def test_what_waits_together_is_written_together_and_in_order(database: Database, tmp_path: Path) -> None:
    writer = database.records.writer
    assert isinstance(writer, SqliteWriter)
    before = writer.batches
    await asyncio.gather(*(writer.submit(note(f"{number:02}")) for number in range(40)))
    assert writer.batches - before <= 2
    assert words(tmp_path) == [f"{number:02}" for number in range(40)]


async def test_one_that_fails_takes_nobody_along(database: Database, tmp_path: Path) -> None:
    def refuses(codec: Codec) -> Script[None]:
        yield "INSERT INTO note (word) VALUES (:word)", {"word": "half done"}
        raise NotFound("no")

    writer = database.records.writer
    waiting = [writer.submit(script) for script in (note("a"), note("a"), refuses, note(2**70), note("b"))]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), Conflict, NotFound, InternalError, type(None)]
    assert words(tmp_path) == ["a", "b"]
    with pytest.raises(NotFound):
        await writer.submit(refuses)
    await writer.submit(note("c"))
    assert words(tmp_path) == ["a", "b", "c"]


async def test_somebody_else_who_writes_is_waited_for_without_blocking_the_loop(
    database: Database, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "routeur.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = database.records.writer.submit(note("patient"))
        for _ in range(20):  # the loop turns
            await asyncio.sleep(0)
        assert not writing.done()
        other.execute("INSERT INTO note (word) VALUES ('first')")
        other.execute("COMMIT")
    await writing
    assert words(tmp_path) == ["first", "patient"]


async def test_who_stops_waiting_does_not_stop_the_writing(database: Database, tmp_path: Path) -> None:
    writing = database.records.writer.submit(note("kept"))
    writing.cancel()
    await database.records.writer.submit(note("next"))
    assert words(tmp_path) == ["kept", "next"]


async def test_closing_writes_what_is_queued_and_takes_nothing_more(tmp_path: Path) -> None:
    async with open_database(Settings(storage=StorageSettings(data_dir=tmp_path))) as opened:
        writer = opened.records.writer
        writer.submit(lambda _: one("CREATE TABLE note (id INTEGER PRIMARY KEY, word TEXT UNIQUE)", {}))
        for number in range(120):
            writer.submit(note(f"{number:03}"))
    assert len(words(tmp_path)) == 120
    with pytest.raises(Unavailable, match="stopping"):
        await writer.submit(note("late"))


async def test_a_database_that_cannot_be_written_is_said_so(database: Database, tmp_path: Path) -> None:
    writer = database.records.writer
    assert isinstance(writer, SqliteWriter)
    writer._driver.execute("PRAGMA max_page_count = 1", {})
    writer._driver.execute("PRAGMA query_only = ON", {})
    with pytest.raises(Unavailable, match="cannot be written"):
        await writer.submit(note("x"))
    writer._driver.execute("PRAGMA query_only = OFF", {})
    writer._driver.execute("PRAGMA max_page_count = 100000", {})
    await writer.submit(note("again"))
    assert words(tmp_path) == ["again"]


async def test_the_log_is_emptied_under_load(database: Database, tmp_path: Path) -> None:
    writer = database.records.writer
    for begin in range(0, 6_000, 300):
        await asyncio.gather(*(writer.submit(note(f"{number} {'x' * 2_000}")) for number in range(begin, begin + 300)))
    log = (tmp_path / "routeur.sqlite3-wal").stat().st_size
    assert log < 20_000_000, "12 MB of rows, written in 120 batches, in a log that begins anew"
    assert len(words(tmp_path)) == 6_000
