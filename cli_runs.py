"""`routeur worker`, `routeur run AGENT` and `routeur runs ...`: background runs, from the terminal."""

import asyncio
import signal
from contextlib import suppress
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app import at_work
from config.environment import load_settings
from config.settings import Settings
from core.logging import setup_logging
from domain.background import AgentRunRequest, RunAccepted
from domain.enums import RunStatus
from domain.errors import Unavailable
from domain.events import (
    AgentEvent,
    ApprovalRequested,
    LogWritten,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunResumed,
    RunTimedOut,
    RunWaiting,
    StateUpdated,
    TextDelta,
    ToolFinished,
    ToolStarted,
)
from domain.runs import RunFilter, RunInfo
from services.background import Background
from services.container import Services, open_services
from terminal import checked, err, operator_of, out, with_services

runs = typer.Typer(help="Background runs: list, show, cancel, send again.", no_args_is_help=True)

Whose = Annotated[str | None, typer.Option("--user", help="Whose runs (ADMIN_USERNAME).")]
_COLOURS = {
    RunStatus.COMPLETED: "green", RunStatus.FAILED: "red", RunStatus.TIMEOUT: "red", RunStatus.LOST: "red",
    RunStatus.CANCELLED: "yellow", RunStatus.CANCELLING: "yellow", RunStatus.RUNNING: "cyan",
    RunStatus.WAITING: "magenta", RunStatus.QUEUED: "dim",
}  # fmt: skip
_LINE = 80  # characters of a question or an answer in a list
_FOR_OTHERS = 1.0  # seconds in which a server or a worker may take the run, before this terminal does it itself


def worker(
    concurrency: Annotated[int | None, typer.Option(min=1, help="Runs at once (RUN_CONCURRENCY).")] = None,
) -> None:
    """Run background runs, without serving anybody; as many of these as wanted, on one PostgreSQL."""
    settings = load_settings()
    if concurrency is not None:
        chosen = settings.runs.model_copy(update={"concurrency": concurrency})
        settings = settings.model_copy(update={"runs": chosen})
    setup_logging(settings.log, debug=settings.server.debug)
    asyncio.run(_work(settings))


async def _work(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Replaced below by handlers that drain first and then call these.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    async with open_services(settings) as services:
        background = background_of(services)
        await services.llm.warm_up()
        async with at_work(services):
            out.print(Text.assemble(
                ("worker ", "bold"), (services.recorder.worker, "cyan"),
                f" takes {settings.runs.concurrency} runs at once",
                f" ({settings.runs.queue} queue on {services.database.dialect})",
            ), soft_wrap=True)  # fmt: skip
            await stop.wait()
            await background.drain()


def run_agent(
    agent: Annotated[str, typer.Argument(help="Which agent.")],
    question: Annotated[list[str], typer.Argument(help="What it is asked.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what it does until it ends.")] = False,
    session: Annotated[str | None, typer.Option(help="Go on with this session; without it, a new one.")] = None,
    model: Annotated[str | None, typer.Option(help="provider/name (the agent's, or DEFAULT_MODEL).")] = None,
    user: Whose = None,
) -> None:
    """Start a background run. A server or worker on the same database does it; with --follow this terminal, if none."""
    request = checked(lambda: AgentRunRequest(input=" ".join(question), session_id=session, model=model))

    async def work(services: Services) -> None:
        background = background_of(services)
        await services.users.ensure_admin()
        caller = await operator_of(services, user)
        if not follow:
            accepted = await background.runs.submit(agent, request, caller)
            out.print(f"run [bold]{accepted.run_id}[/] is in the queue, session {accepted.session_id}", soft_wrap=True)
            return
        async with background.at_work(takes=False):
            accepted = await background.runs.submit(agent, request, caller)
            err.print(Text(f"run {accepted.run_id}, session {accepted.session_id}", "dim"), soft_wrap=True)
            helping = asyncio.create_task(help_out(background, accepted))
            try:
                await _follow(services, accepted.run_id)
            finally:
                helping.cancel()

    with suppress(KeyboardInterrupt):
        with_services(work)


async def help_out(background: Background, accepted: RunAccepted) -> None:
    """Do it here, when nobody else does."""
    while True:
        await asyncio.sleep(_FOR_OTHERS)
        await background.worker.take(accepted.run_id)


async def _follow(services: Services, run_id: str) -> None:
    """Show a run until it ends, or waits for somebody."""
    told = False
    with out.status("in the queue ...") as status:
        async for batch in services.events.follow(run_id, 0, heartbeat=5):
            if isinstance(batch, tuple):
                err.print(Text(f"events {batch[0]} to {batch[1]} are gone", "dim"))
                continue
            for envelope in batch:
                if not told:
                    status.stop()
                    told = True
                _show(envelope.event)
                if isinstance(envelope.event, RunWaiting):
                    err.print(Text(f"approve with POST /api/runs/{run_id}/approve", "magenta"), soft_wrap=True)
                    return


def _show(event: AgentEvent) -> None:
    match event:
        case TextDelta():
            out.print(event.text, end="\n" if event.done else "", markup=False, highlight=False, soft_wrap=True)
        case ToolStarted():
            out.print(Text(f"-> {event.name} {event.arguments}", "dim"))
        case ToolFinished():
            out.print(Text(f"<- {event.output}", "dim" if event.ok else "red"))
        case LogWritten():
            err.print(Text(f"{event.level.lower():8}{event.message}", "dim"))
        case StateUpdated():
            err.print(Text(f"state   {_short(event.data)}", "dim"))
        case ApprovalRequested():
            err.print(Text(f"asks    {event.approval_id}: {_short(event.payload)}", "magenta"), soft_wrap=True)
        case RunResumed():
            err.print(Text(f"goes on after {event.reason}, attempt {event.attempt}", "yellow"))
        case RunFinished():
            spent = event.usage
            cost = f"{spent.input_tokens} + {spent.output_tokens} tokens" if spent else "usage unknown"
            err.print(Text(f"completed by {event.model}, {cost}", "green"))
        case RunFailed() | RunTimedOut():
            err.print(Text(f"{event.kind.removeprefix('run.')}: {event.message}", "bold red"))
            raise typer.Exit(1)
        case RunCancelled():
            err.print(Text(f"cancelled: {event.reason}", "yellow"))
            raise typer.Exit(1)
        case _:
            pass


@runs.command("list")
def list_runs(
    user: Whose = None,
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    status: Annotated[list[RunStatus] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="Only dead letters: ended badly, and not sent again.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
) -> None:
    """A user's runs, the latest first."""

    async def work(services: Services) -> None:
        caller = await operator_of(services, user)
        wanted = RunFilter(agent=agent, statuses=frozenset(status or ()), dead=dead)
        found = await services.runs.list_runs(wanted, caller, limit=limit)
        table = Table(title="Runs")
        table.add_column("run", no_wrap=True)
        for name in ("agent", "status", "asked", "tokens", "seconds", "begun"):
            table.add_column(name)
        for one in found.runs:
            tokens = f"{one.usage.total_tokens:,}" if one.usage else "?"
            seconds = "" if one.duration is None else f"{one.duration:.1f}"
            shown = Text(one.status.value, _COLOURS[one.status])
            begun = f"{one.created_at:%Y-%m-%d %H:%M:%S}"
            table.add_row(one.run_id, one.agent, shown, escape(_short(one.input)), tokens, seconds, begun)
        out.print(table)

    with_services(work)


@runs.command("show")
def show_run(run_id: str, user: Whose = None) -> None:
    """One run: where it stands, what it said and logged, what it asks."""

    async def work(services: Services) -> None:
        run = await services.runs.get_run(run_id, await operator_of(services, user))
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in _facts(run):
            table.add_row(Text(name, "dim"), value)
        out.print(table)
        for line in run.logs:
            out.print(Text(f"{line.at:%H:%M:%S} {line.level.lower():8}{line.message}", "dim"))
        for approval in run.approvals:
            out.print(Text(f"asked {approval.approval_id}: {_short(approval.payload)} ({approval.status})", "magenta"))

    with_services(work)


@runs.command("cancel")
def cancel_run(run_id: str, user: Whose = None) -> None:
    """End a run, wherever it is going on."""

    async def work(services: Services) -> None:
        state = await background_of(services).runs.cancel(run_id, await operator_of(services, user))
        out.print(Text(f"{run_id} {state.status.value}", _COLOURS[state.status]))

    with_services(work)


@runs.command("requeue")
def requeue_run(run_id: str, user: Whose = None) -> None:
    """Send a dead letter again, as a new run."""

    async def work(services: Services) -> None:
        accepted = await background_of(services).runs.requeue(run_id, await operator_of(services, user))
        out.print(f"run [bold]{accepted.run_id}[/] is in the queue", soft_wrap=True)

    with_services(work)


def _facts(run: RunInfo) -> list[tuple[str, Any]]:
    error = "" if run.error is None else f"{run.error.code}: {run.error.message}"
    facts = [
        ("run", run.run_id), ("session", run.session_id), ("agent", run.agent), ("model", run.model),
        ("asked", run.input), ("answered", run.output), ("error", error),
        ("attempts", run.attempt or ""), ("seconds", run.duration),
        ("tokens", run.usage.total_tokens if run.usage else ""), ("cost", "" if run.cost is None else f"${run.cost:f}"),
    ]  # fmt: skip
    shown = [(name, Text(_text(value))) for name, value in facts if value not in (None, "")]
    return [("status", Text(run.status.value, _COLOURS[run.status])), *shown]


def background_of(services: Services) -> Background:
    if services.background is None:
        raise Unavailable("Background runs need the SQL store: unset SESSION_STORE_URL.", code="background_unavailable")
    return services.background


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _short(value: Any) -> str:
    text = " ".join(_text(value).split())
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"
