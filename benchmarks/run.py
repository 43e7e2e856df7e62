"""`python -m benchmarks.run`: what our routes cost, as ratios to a byte relay measured in the same run."""

import asyncio
import platform
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from benchmarks.bench import Bench, Subject, open_bench
from benchmarks.dialects import WrongAnswer
from benchmarks.kinds import measurement
from benchmarks.measures import Pair
from benchmarks.processes import ServerFailed, clock_name
from benchmarks.report import as_json, as_svg, table
from benchmarks.results import Result, Samples
from benchmarks.scenarios import SCENARIOS, Scenario

_FULL_LIMIT, _QUICK_LIMIT = 150.0, 30.0  # seconds after which no new round begins; the first of each always does
_HARD_LIMIT = 300.0  # seconds after which the run is given up

out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds: a look, not a figure.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, max=50, help="Samples of each server and scenario.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="One scenario by name; may be repeated.")] = None,
    target: Annotated[
        str, typer.Option(help="What is compared to the relay: ours, or the relay itself (about 1x).")
    ] = "ours",
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the ratios into this file.")] = None,
) -> None:
    """Measure and show. Ends with 1 when an answer was wrong or a server failed, not when a target was missed."""
    chosen = _chosen(only or [])
    if quick:
        chosen = [scenario.quick() for scenario in chosen]
    if rounds is not None:
        chosen = [scenario.with_rounds(rounds) for scenario in chosen]
    if target not in ("ours", "relay"):
        raise typer.BadParameter("ours or relay", param_hint="--target")
    subject: Subject = "relay" if target == "relay" else "ours"
    begun = time.monotonic()
    try:
        results = asyncio.run(_measure_all(subject, chosen, _QUICK_LIMIT if quick else _FULL_LIMIT))
    except (WrongAnswer, ServerFailed, TimeoutError) as error:
        err.print(Text(f"error: {error or 'the run took too long'}", style="bold red"))
        sys.exit(1)
    except asyncio.CancelledError:
        err.print("ended by SIGTERM")
        sys.exit(128 + signal.SIGTERM)
    about = _about(subject, quick, time.monotonic() - begun)
    out.print(table(results, f"CPU, latency and memory of {subject}, as ratios to a byte relay", _caption(about)))
    if json is not None:
        json.write_bytes(as_json(results, about))
    if svg is not None:
        svg.write_text(as_svg(results, f"{subject}, as ratios to a byte relay (less is better)"), encoding="utf-8")
    if any(result.scenario.measure == "waves" and result.ours.high > 0 for result in results):
        sys.exit(1)


def _chosen(names: list[str]) -> list[Scenario]:
    known = [scenario.name for scenario in SCENARIOS]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"'{name}' is not one of: {', '.join(known)}", param_hint="--only")
    return [scenario for scenario in SCENARIOS if not names or scenario.name in names]


async def _measure_all(subject: Subject, scenarios: list[Scenario], limit: float) -> list[Result]:
    task = asyncio.current_task()
    if task is not None:
        with suppress(NotImplementedError):  # a platform without signal handlers
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with asyncio.timeout(_HARD_LIMIT), open_bench(subject) as bench, bench.pair() as pair:
        with _progress() as progress:
            rows = [progress.add_task(scenario.path, total=scenario.rounds) for scenario in scenarios]
            begun, results = time.monotonic(), []
            for number, (scenario, row) in enumerate(zip(scenarios, rows, strict=True), start=1):
                # whoever is quick leaves its time to those that follow
                deadline = begun + limit * number / len(scenarios)
                results.append(await _measure(bench, pair, scenario, deadline, progress, row))
            return results


async def _measure(
    bench: Bench, pair: Pair, scenario: Scenario, deadline: float, progress: Progress, row: TaskID
) -> Result:
    samples, taking = Samples(), measurement(bench, pair, scenario)
    while len(samples.ours) < scenario.rounds and (not samples.ours or time.monotonic() < deadline):
        samples.add(await taking.round())
        progress.advance(row)
    progress.update(row, total=len(samples.ours))
    return samples.result(scenario, taking.note, taking.passed)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )


def _about(subject: Subject, quick: bool, seconds: float) -> dict[str, Any]:
    return {
        "subject": subject,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "quick": quick,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} processors",
        "clock": clock_name(),
    }


def _caption(about: dict[str, Any]) -> str:
    return f"{about['machine']}, Python {about['python']}, CPU clock in {about['clock']}, {about['seconds']} s" + (
        ", quick: a look, not a figure" if about["quick"] else ""
    )


if __name__ == "__main__":
    typer.run(main)
