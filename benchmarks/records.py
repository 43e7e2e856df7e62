"""How long the questions about runs and sessions take as they become many: `python -m benchmarks.records`.

A SQLite database is filled step by step (1 k, 10 k, 100 k, 1 M runs of ten owners); at each step every question is
asked often, and the median of its times is shown. Questions that are answered from an index stay flat.
"""

import asyncio
import json
import math
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import insert

from config.settings import Settings, StorageSettings
from core.database import tables
from core.database.engine import Database, open_database
from core.database.unit_of_work import UnitOfWork
from domain.enums import RunStatus
from domain.runs import Cursor, RunFilter
from domain.users import User

STEPS = (1_000, 10_000, 100_000, 1_000_000)
_OWNERS, _AGENTS, _CHUNK, _TIMES = 10, 20, 5_000, 30
_NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
_OWNER = "owner-3"
_LAST_HOUR = _NOW - timedelta(hours=1)

Ask = Callable[[UnitOfWork], Awaitable[Any]]
QUESTIONS: dict[str, Ask] = {
    "the latest 50 runs": lambda w: w.runs.find_runs(RunFilter(_OWNER)),
    "50 runs from the middle": lambda w: w.runs.find_runs(RunFilter(_OWNER), after=Cursor(_LAST_HOUR, "")),
    "50 runs of one agent": lambda w: w.runs.find_runs(RunFilter(_OWNER, agent="agent-3")),
    "50 failed runs": lambda w: w.runs.find_runs(RunFilter(_OWNER, statuses=frozenset({RunStatus.FAILED}))),
    "runs of one dossier": lambda w: w.runs.find_runs(RunFilter(_OWNER, metadata={"dossier_id": "dossier:3"})),
    "runs in progress": lambda w: w.runs.in_progress(_OWNER, _NOW),
    "counts of the last hour": lambda w: w.runs.statistics(RunFilter(_OWNER, since=_LAST_HOUR), "agent"),
    "the latest 50 sessions": lambda w: w.sessions.find_recent_sessions(_OWNER),
    "50 sessions of one agent": lambda w: w.sessions.find_by_agent_id("agent-3", _OWNER),
    "100 messages of a session": lambda w: w.simple_messages.find_by_session_id("session-000000003", limit=100),
}


def main(
    most: Annotated[int, typer.Option(help="How many runs at the last step.")] = STEPS[-1],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
    svg_file: Annotated[Path | None, typer.Option("--svg", help="Draw them there.")] = None,
) -> None:
    """Fill, ask, show."""
    steps = [step for step in STEPS if step <= most]
    figures = asyncio.run(_measure(steps))
    table = Table(
        "question (ms, median)", *(f"{step:,}" for step in steps), title="Questions, by number of runs (SQLite)"
    )
    for name, times in figures.items():
        table.add_row(name, *(f"{value:.2f}" for value in times))
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"runs": steps, "milliseconds": figures}, indent=1) + "\n")
    if svg_file is not None:
        svg_file.write_text(_svg(steps, figures))


async def _measure(steps: list[int]) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    with tempfile.TemporaryDirectory(prefix="routeur-records-") as folder:
        settings = Settings(storage=StorageSettings(data_dir=Path(folder)))
        async with open_database(settings) as database:
            await _add_owners(database)
            filled = 0
            for step in steps:
                chunks = range(filled, step, min(_CHUNK, step))
                for begin in track(chunks, f"filling to {step:,}", transient=True):
                    await _fill(database, begin, min(begin + _CHUNK, step))
                filled = step
                for name, ask in QUESTIONS.items():
                    figures[name].append(await _median(database, ask))
    return figures


async def _median(database: Database, ask: Ask) -> float:
    """Milliseconds of one question, among others like it."""
    taken = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        async with database.reading() as work:
            await ask(work)
        taken.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(taken)


async def _fill(database: Database, begin: int, end: int) -> None:
    async with database._engine.connect() as plain:
        connection = await plain.execution_options(routeur_begin="BEGIN IMMEDIATE")
        async with connection.begin():
            for table, rows in _rows(range(begin, end)):
                await connection.execute(insert(table), rows)


def _rows(numbers: range) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """A run and its session for each number, the later the newer; few are of a dossier, one in 50 failed."""
    own = [{"owner_id": f"owner-{n % _OWNERS}", "agent": f"agent-{n // _OWNERS % _AGENTS}"} for n in numbers]
    times = [_NOW - timedelta(seconds=max(STEPS) - n) for n in numbers]
    common = {"kind": "agent", "metadata": {}, "model": "a/b"}
    empty = {"title": "A conversation", "agents": [], "message_count": 2, "synced": 0}
    yield (
        tables.sessions,
        [
            {"id": f"session-{n:09}", **mine, **common, **empty, "created_at": at, "updated_at": at, "used_at": at}
            for n, mine, at in zip(numbers, own, times, strict=True)
        ],
    )
    counted = {"estimated": False, "calls": 1, "unmeasured_calls": 0, "unpriced_calls": 0, "total_tokens": 30}
    yield tables.runs, [
        {
            "id": f"run-{n:09}", "session_id": f"session-{n:09}", "status": "failed" if n % 50 == 3 else "completed",
            "input": "a question", "output": "an answer", **mine, **common, **counted, "created_at": at,
            "started_at": at, "completed_at": at + timedelta(seconds=2), "updated_at": at,
        }
        for n, mine, at in zip(numbers, own, times, strict=True)
    ]  # fmt: skip
    tagged = [n for n in numbers if n % 1_000 in (3, 13)]
    if tagged:
        yield tables.run_metadata, [
            {
                "run_id": f"run-{n:09}", "key": "dossier_id", "value": f"dossier:{n % 10 if n < 20_000 else n}",
                "owner_id": f"owner-{n % _OWNERS}", "created_at": times[n - numbers.start],
            }
            for n in tagged
        ]  # fmt: skip
    line = {"part": 0, "role": "user", "kind": "text", "content": "a question " * 5, "partial": False}
    yield (
        tables.simple_messages,
        [
            {"session_id": f"session-{n:09}", "message_index": index, **line, "timestamp": at}
            for n, at in zip(numbers, times, strict=True)
            for index in range(2)
        ],
    )


async def _add_owners(database: Database) -> None:
    async with database.unit_of_work() as work:
        for number in range(_OWNERS):
            name = f"owner-{number}"
            await work.users.create(
                User(id=name, username=name, password_hash="x", scopes=frozenset(), created_at=_NOW, updated_at=_NOW)
            )


def _svg(steps: list[int], figures: dict[str, list[float]]) -> str:
    """Lines over the number of runs, both axes logarithmic."""
    width, height, left, bottom, right = 860, 380, 60, 40, 230
    colours = (
        "#0969da",
        "#1a7f37",
        "#9a6700",
        "#cf222e",
        "#8250df",
        "#bf3989",
        "#57606a",
        "#0a7ea4",
        "#bc4c00",
        "#116329",
    )
    most = max(value for times in figures.values() for value in times)
    top = 10 ** math.ceil(math.log10(max(most, 10)))

    def x(step: int) -> float:
        return left + (width - left - right) * math.log10(step / steps[0]) / max(math.log10(steps[-1] / steps[0]), 1)

    def y(value: float) -> float:
        return (height - bottom) - (height - bottom - 20) * math.log10(max(value, 0.1) / 0.1) / math.log10(top / 0.1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    tick = 0.1
    while tick <= top:
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g} ms</text>')
        tick *= 10
    for step in steps:
        parts.append(f'<text x="{x(step):.1f}" y="{height - 14}" text-anchor="middle">{step:,} runs</text>')
    labels = sorted(figures, key=lambda name: -figures[name][-1])
    for place, name in enumerate(labels):
        colour = colours[place % len(colours)]
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, figures[name], strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width - right + 12}" y="{34 + place * 20}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    typer.run(main)
