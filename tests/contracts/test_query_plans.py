"""What is asked often is answered from an index, on both engines: no table is read through, nothing is sorted."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from core.database import tables
from core.database.engine import Database, open_database
from core.database.unit_of_work import UnitOfWork
from domain.enums import RunStatus
from domain.runs import Cursor, RunFilter
from tests.contracts.storage import add_owners, new_storage
from tests.contracts.test_record_stores import ran, run, session, start
from tests.engines import ENGINES

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PLACE = Cursor(NOW, "01")
TAG = {"dossier_id": "d7"}
ROWS = 6_000
RECENT = NOW - timedelta(hours=1)
LONG_AGO = NOW - timedelta(days=9)
Ask = Callable[[UnitOfWork], Awaitable[Any]]

#: What is asked, and the index that answers. A key of a table is `pk`.
QUESTIONS: dict[str, tuple[Ask, str]] = {
    "recent runs": (lambda w: w.runs.find_runs(RunFilter("ada")), "ix_runs_owner_created"),
    "the next page": (lambda w: w.runs.find_runs(RunFilter("ada"), after=PLACE), "ix_runs_owner_created"),
    "runs since": (lambda w: w.runs.find_runs(RunFilter("ada", since=RECENT)), "ix_runs_owner_created"),
    "by agent": (lambda w: w.runs.find_runs(RunFilter("ada", agent="a7")), "ix_runs_owner_agent_created"),
    "by status and time": (
        lambda w: w.runs.find_runs(RunFilter("ada", statuses=frozenset({RunStatus.FAILED}), since=LONG_AGO)),
        "ix_runs_owner_bad",
    ),
    "by metadata": (lambda w: w.runs.find_runs(RunFilter("ada", metadata=TAG)), "ix_run_metadata_value"),
    "by metadata, next page": (
        lambda w: w.runs.find_runs(RunFilter("ada", metadata=TAG), after=PLACE), "ix_run_metadata_value",
    ),
    "of a session": (lambda w: w.runs.find_runs(RunFilter(session_id="s7")), "ix_runs_session"),
    "in progress": (lambda w: w.runs.in_progress("ada", NOW), "uq_runs_one_active"),
    "counted since": (lambda w: w.runs.statistics(RunFilter("ada", since=RECENT), "agent"), "ix_runs_owner_created"),
    "recent sessions": (lambda w: w.sessions.find_recent_sessions("ada"), "ix_sessions_owner_used"),
    "sessions by agent": (lambda w: w.sessions.find_by_agent_id("a7", "ada"), "ix_sessions_owner_agent_used"),
    "sessions by metadata": (
        lambda w: w.sessions.find_recent_sessions("ada", metadata=TAG), "ix_session_metadata_value",
    ),
    "raw messages": (lambda w: w.raw_messages.find_by_session_id("s7", after=5), "pk"),
    "simple messages": (lambda w: w.simple_messages.find_by_session_id("s7", after=5), "pk"),
    "usage of a session": (lambda w: w.model_calls.usage_of_session("s7"), "ix_model_calls_run"),
    "events of a run": (lambda w: w.runs.events("r7"), "pk"),
}  # fmt: skip
#: Few rows at a time are put in order after they were found by their index: those of one group, or of one tag.
MAY_SORT = {"in progress", "counted since", "sessions by metadata", "of a session", "events of a run"}


@pytest.fixture(params=ENGINES, scope="module")
async def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    """Some thousand rows, of which the engine has made its statistics: with few it would rightly read them all."""
    folder = tmp_path_factory.mktemp(request.param)
    async with new_storage(request.param, folder) as settings, open_database(settings) as opened:
        await add_owners(opened)
        begun = await ran(opened.records, start(metadata=TAG))
        async with opened._engine.begin() as connection:
            for table, rows in filling(begun.session_id):
                await connection.execute(insert(table), rows)
        async with opened._engine.begin() as connection:
            await connection.execute(text("ANALYZE"))
        yield opened


def filling(session_id: str) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    numbers = range(ROWS)
    runs, sessions = [], []
    for number in numbers:
        owner, at = "ada" if number % 2 else "bob", NOW - timedelta(minutes=number)
        sessions.append(
            session(
                owner, id=f"s{number}", agent=f"a{number % 20}", used_at=at, updated_at=at, created_at=at
            ).model_dump()
        )
        status = RunStatus.FAILED if number % 50 == 0 else RunStatus.COMPLETED
        made = run(
            owner, id=f"r{number}", agent=f"a{number % 20}", created_at=at, status=status, session_id=f"s{number}"
        )
        runs.append(made.model_dump())
    yield tables.sessions, sessions
    yield tables.runs, runs
    tags = [{"key": "dossier_id", "value": f"d{number % 300}"} for number in numbers]
    times = [{"owner_id": row["owner_id"], "created_at": row["created_at"]} for row in runs]
    yield tables.run_metadata, [{"run_id": f"r{n}", **tags[n], **times[n]} for n in numbers]
    yield (
        tables.session_metadata,
        [{"session_id": f"s{n}", **tags[n], "owner_id": times[n]["owner_id"]} for n in numbers],
    )
    place = [
        {"session_id": f"s{n // 10}", "message_index": n % 10, "timestamp": NOW, "run_id": f"r{n}"} for n in numbers
    ]
    yield tables.raw_messages, [{**one, "format": "langchain", "message_data": {}} for one in place]
    line = {"part": 0, "role": "user", "kind": "text", "content": "x", "partial": False}
    yield tables.simple_messages, [{**one, **line} for one in place]
    call = {"agent": "a", "model": "m", "estimated": False, "created_at": NOW, "session_id": session_id}
    yield tables.model_calls, [{"owner_id": "ada", "run_id": f"r{n}", **call} for n in numbers]
    event_row = {"first_seq": 1, "last_seq": 1, "events": "[]", "at": NOW}
    yield tables.run_events, [{"run_id": f"r{n}", **event_row} for n in numbers if n]


@pytest.mark.parametrize("name", QUESTIONS)
async def test_a_question_is_answered_from_its_index(database: Database, name: str) -> None:
    ask, index = QUESTIONS[name]
    plan = await plan_of(database, ask)
    assert ("PRIMARY KEY" in plan or "pk_" in plan) if index == "pk" else index in plan, plan
    for scan in ("SCAN runs\n", "SCAN sessions\n", "SCAN raw_messages", "SCAN simple_messages", "Seq Scan"):
        assert scan not in plan, plan
    if name not in MAY_SORT:
        assert "TEMP B-TREE" not in plan, plan
        assert "Sort" not in plan, plan


async def plan_of(database: Database, ask: Ask) -> str:
    """How the engine would answer, in its own words."""
    asked: list[tuple[str, Any]] = []
    engine = database._engine.sync_engine

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT") and "pg_catalog" not in statement:
            asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        async with database.reading() as work:
            await ask(work)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    lines: list[str] = []
    async with database._engine.connect() as connection:
        # A handful of rows it likes to collect in any order and sort; what matters is what it does when there are many.
        if database.dialect != "sqlite":
            await connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        for statement, parameters in asked:
            how = "EXPLAIN QUERY PLAN" if database.dialect == "sqlite" else "EXPLAIN"
            rows = await connection.exec_driver_sql(f"{how} {statement}", parameters)
            lines += [str(row[-1]) for row in rows]
    return "\n".join(lines) + "\n"
