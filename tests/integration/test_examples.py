"""The examples do what their documentation says."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import Settings
from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.enums import RunStatus, SessionKind
from domain.errors import RouteurError
from domain.runs import RunFilter
from examples.dossier.service import DossierService
from examples.dossier.tables import DossierTables
from examples.dossier.workflow import KEY, SPEC, build_workflow
from examples.record_a_pydantic_ai_run import record
from services.container import Services
from tests.fakes.house import House

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


async def notary(house: House) -> tuple[Services, Principal]:
    router = house.services
    router.registry.register_agent(KEY, build_workflow, spec=SPEC)
    user = await router.users.find("admin")
    return router, Principal(UserId(user.id), "admin", frozenset({Scope.ADMIN}), CredentialKind.API_KEY, "k")


async def test_a_dossiers_runs_are_found_by_its_metadata(house: House, tmp_path: Path) -> None:
    router, caller = await notary(house)
    tables = DossierTables(tmp_path / "notary.sqlite3")
    service = DossierService(tables, router, caller)
    one, other = tables.add_dossier("Sale of a house", "user:ada"), tables.add_dossier("A farm", "user:bob")
    tables.add_document(one.id, "deed.txt", "Price: open.")
    first = await service.analyse(one.id)
    await service.analyse(other.id)
    second = await service.analyse(one.id)
    assert [run.run_id for run in await service.history(one.id)] == [second.run_id, first.run_id]
    assert [list_.items for list_ in tables.checklists(one.id)] == [first.items, second.items]
    run = (await router.runs.get_run(first.run_id, caller)).model_dump()
    assert (run["kind"], run["status"], run["calls"]) == (SessionKind.WORKFLOW, RunStatus.COMPLETED, 2)
    assert "Price: open." in run["input"]
    stats = await router.runs.stats(RunFilter(kind=SessionKind.WORKFLOW), caller, by="metadata", key="dossier_id")
    assert {row.group: (row.executions, row.successes, row.errors) for row in stats.groups} == {
        one.id: (2, 2, 0), other.id: (1, 1, 0),
    }  # fmt: skip
    over_http = await house.client.get(f"/api/runs?metadata.dossier_id={one.id}&kind=workflow")
    assert [run["run_id"] for run in over_http.json()["runs"]] == [second.run_id, first.run_id]
    tables.close()


async def test_a_failed_analysis_is_in_the_history_and_leaves_no_checklist(house: House, tmp_path: Path) -> None:
    router, caller = await notary(house)

    def broken(context: object) -> object:
        raise RuntimeError("no")

    router.registry.register_agent(KEY, broken, spec=SPEC)  # type: ignore[arg-type]
    tables = DossierTables(tmp_path / "notary.sqlite3")
    dossier = tables.add_dossier("x", "user:ada")
    with pytest.raises(RouteurError):
        await DossierService(tables, router, caller).analyse(dossier.id)
    assert tables.checklists(dossier.id) == []
    with pytest.raises(KeyError):
        await DossierService(tables, router, caller).analyse("dossier:none")
    tables.close()


async def test_the_views_have_the_names_and_words_of_the_workflow_tables(
    house: House, settings: Settings, tmp_path: Path
) -> None:
    router, caller = await notary(house)
    tables = DossierTables(tmp_path / "notary.sqlite3")
    dossier = tables.add_dossier("x", "user:ada")
    checklist = await DossierService(tables, router, caller).analyse(dossier.id)
    await house.client.post("/completion", json={"message": "hello"})
    await house.client.post("/api/sessions", json={"kind": "team", "agents": ["simple", "react"], "state": {"n": 1}})
    async with router.database._engine.connect() as connection:

        async def rows(view: str, columns: str) -> list[tuple[object, ...]]:
            found = await connection.exec_driver_sql(f"SELECT {columns} FROM {view}")
            return [tuple(row) for row in found]

        assert await rows("workflow_runs", "id, workflow_name, status") == [(checklist.run_id, KEY, "success")]
        assert await rows("agent_runs", "agent_id, status") == [("simple", "completed")]
        assert [row[0] for row in await rows("workflow_sessions", "workflow_name")] == [KEY]
        assert await rows("team_sessions", "agents, state") == [('["simple", "react"]', '{"n": 1}')]
        ((messages,),) = await rows("agent_sessions", "messages")
        assert str(messages).startswith('[{"role":"user","content":"hello","timestamp":')
    tables.close()


async def test_a_run_of_another_library_is_stored_with_its_usage_once(house: House) -> None:
    router, caller = await notary(house)
    session_id = await record(router, caller)
    told = await router.sessions.get_session(session_id, caller)
    assert [(line.role.value, line.content) for line in told.messages] == [
        ("system", "Be brief."), ("user", "What is the capital of France?"), ("assistant", "Paris."),
        ("user", "And of Italy?"), ("assistant", "Paris."), ("user", "Thank you."),
    ]  # fmt: skip
    assert told.token_usage.calls == 2
    runs = (await router.runs.list_runs(RunFilter(session_id=session_id), caller)).runs
    assert [run.input for run in runs] == ["And of Italy?", "What is the capital of France?"]
    assert told.token_usage.usage is not None
    assert told.token_usage.usage.total_tokens == sum(run.usage.total_tokens for run in runs if run.usage)


@pytest.mark.parametrize("module", ["examples.dossier", "examples.record_a_pydantic_ai_run"])
def test_an_example_runs_as_it_says(module: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={"PATH": "", "DATA_DIR": str(tmp_path), "DISCOVER_LOCAL": "false", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "executions" in done.stdout or "tokens in 2 calls" in done.stdout


async def test_the_calls_of_background_runs_do_what_they_say(house: House) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "examples.api_examples"],
        cwd=ROOT,
        env={"PATH": "", "URL": house.url, "TOKEN": house.tokens["access_token"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "agents: direct, react, simple" in done.stdout
    assert "event 1 run.started" in done.stdout
    assert "status: completed" in done.stdout
    assert "result: calculator answered: 42" in done.stdout
    assert "next at: 20" in done.stdout
