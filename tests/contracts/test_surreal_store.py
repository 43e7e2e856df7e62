"""What only the embedded engine promises: the tables and queries of the workflow documentation, and one process."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from config.settings import SettingsError
from core.surreal.store import open_surreal_store
from domain.enums import RunStatus, SessionKind
from domain.runs import RunFilter
from tests.contracts.test_record_stores import NOW, end, ran, run, session, start

pytestmark = pytest.mark.anyio

#: As the documentation writes them; only the owner is added to none of them.
HISTORY = 'SELECT * FROM workflow_runs WHERE metadata.dossier_id = "dossier:abc123" ORDER BY created_at DESC'
STATISTICS = """SELECT workflow_name, count() AS executions, count(status = 'success') AS successes,
    count(status = 'error') AS errors FROM workflow_runs GROUP BY workflow_name"""
LATEST = """SELECT workflow_name, status, created_at, completed_at, metadata FROM workflow_runs
    ORDER BY created_at DESC LIMIT 10"""
IN_PROGRESS = "SELECT * FROM workflow_runs WHERE status = 'running' AND created_at > time::now() - 1h"


async def test_the_documented_queries_give_what_ours_give() -> None:
    now = datetime.now(UTC)
    async with open_surreal_store("mem://") as store:
        async with store.unit_of_work() as work:
            for number in range(12):
                at = now - timedelta(minutes=number)
                status = RunStatus.FAILED if number % 4 == 3 else RunStatus.COMPLETED
                metadata = {"dossier_id": "dossier:abc123" if number % 2 else "dossier:other"}
                agent = "analyse_dossier" if number % 3 else "resume"
                await work.runs.create(run(agent=agent, status=status, metadata=metadata, created_at=at))
            going = run(status=RunStatus.RUNNING, created_at=now, lease_until=now + timedelta(minutes=1))
            await work.runs.create(going)
        async with store.reading() as work:
            ours = [one.id for one in await work.runs.find_runs(RunFilter(metadata={"dossier_id": "dossier:abc123"}))]
            assert [row["run_id"] for row in await work.rows(HISTORY)] == ours
            counted = {row.group: row for row in await work.runs.statistics(RunFilter(), "agent")}
            told = {row["workflow_name"]: row for row in await work.rows(STATISTICS)}
            assert told.keys() == counted.keys()
            for name, row in told.items():
                assert (row["executions"], row["successes"], row["errors"]) == (
                    counted[name].executions, counted[name].successes, counted[name].errors,
                )  # fmt: skip
            latest = await work.runs.find_runs(RunFilter(), limit=10)
            assert [row["created_at"] for row in await work.rows(LATEST)] == [one.created_at for one in latest]
            running = [row["run_id"] for row in await work.rows(IN_PROGRESS)]
            assert running == [one.id for one in await work.runs.in_progress(None, now)] == [going.id]


async def test_each_kind_of_session_has_its_table() -> None:
    async with open_surreal_store("mem://") as store:
        async with store.unit_of_work() as work:
            for kind in SessionKind:
                await work.sessions.create(session(kind=kind, agent=f"my_{kind}", agents=["a"], state={"step": 1}))
        async with store.reading() as work:
            for kind in SessionKind:
                (row,) = await work.rows(f"SELECT * FROM {kind}_sessions")
                assert row[f"{kind}_name"] == f"my_{kind}"
                assert row["state"] == {"step": 1}


async def test_what_was_written_is_there_after_the_next_start(tmp_path: Path) -> None:
    url = f"surrealkv://{tmp_path}/sessions"
    async with open_surreal_store(url) as store:
        begun = await ran(store, start())
        unfinished = start()
        await store.begin_run(unfinished)
        store.end_run(end(unfinished))  # nobody waits; closing does
    async with open_surreal_store(url) as store, store.reading() as work:
        assert [line.content for line in await work.simple_messages.find_by_session_id(begun.session_id)] == [
            "hello", "answer",
        ]  # fmt: skip
        assert {one.status for one in await work.runs.find_runs(RunFilter())} == {RunStatus.COMPLETED}


async def test_a_folder_that_is_open_is_not_opened_again(tmp_path: Path) -> None:
    url = f"surrealkv://{tmp_path}/sessions"
    async with open_surreal_store(url):
        with pytest.raises(SettingsError, match="SESSION_STORE_URL"):
            async with open_surreal_store(url):
                pass


@pytest.mark.parametrize("url", ["ws://localhost:8000", "surrealkv://", "sqlite:///x", "http://x"])
async def test_another_kind_of_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="SESSION_STORE_URL"):
        async with open_surreal_store(url):
            pass


async def test_moments_keep_their_microseconds() -> None:
    async with open_surreal_store("mem://") as store:
        await ran(store, start(at=NOW))
        async with store.reading() as work:
            assert await work.rows("SELECT created_at FROM workflow_runs") == [{"created_at": NOW}]
