"""`routeur sessions ...`: conversations, from the terminal."""

import asyncio
import sys
from typing import Annotated, Literal

import typer
from rich.progress import track
from rich.table import Table
from rich.text import Text

from services.container import Services
from terminal import operator_of, out, with_services

sessions = typer.Typer(help="Conversations: list, show, export, delete, derive again.", no_args_is_help=True)

Whose = Annotated[str | None, typer.Option("--user", help="Whose sessions (ADMIN_USERNAME).")]
_COLOURS = {"user": "bold cyan", "assistant": "green", "tool": "dim", "system": "yellow"}


@sessions.command("list")
def list_sessions(
    user: Whose = None,
    agent: Annotated[str | None, typer.Option(help="Only with this agent.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
) -> None:
    """A user's sessions, the latest used first."""

    async def work(services: Services) -> None:
        caller = await operator_of(services, user)
        found = (
            await services.sessions.get_sessions_by_agent(agent, caller, limit=limit)
            if agent
            else await services.sessions.recent(caller, limit=limit)
        )
        table = Table("session", "agent", "title", "messages", "tokens", "cost", "last change", title="Sessions")
        for one in found.sessions:
            spent = await services.sessions.usage(one.session_id, caller)
            tokens = "?" if spent.usage is None else f"{spent.usage.total_tokens:,}"
            cost = "?" if spent.cost is None else f"${spent.cost:f}"
            when = f"{one.updated_at:%Y-%m-%d %H:%M}"
            table.add_row(one.session_id, one.agent, one.title, str(one.message_count), tokens, cost, when)
        out.print(table)

    with_services(work)


@sessions.command("show")
def show_session(session_id: str, user: Whose = None) -> None:
    """A conversation, for reading."""

    async def work(services: Services) -> None:
        caller = await operator_of(services, user)
        after: int | None = -1
        while after is not None:
            page = await services.sessions.get_messages(session_id, caller, after=after, limit=200)
            for line in page.messages:
                who = f"{line.name or line.role.value}{' (cut)' if line.partial else ''}"
                out.print(Text(f"{who}  ", _COLOURS[line.role.value]), end="")
                out.print(line.content, markup=False, highlight=False)
            after = page.next_after

    with_services(work)


@sessions.command("export")
def export_session(
    session_id: str,
    user: Whose = None,
    form: Annotated[Literal["json", "markdown"], typer.Option("--format")] = "markdown",
) -> None:
    """Everything of a session, on standard output."""

    async def work(services: Services) -> None:
        export = await services.sessions.export(session_id, await operator_of(services, user))
        sys.stdout.write(export.markdown() if form == "markdown" else export.model_dump_json(indent=2))
        sys.stdout.write("\n")

    with_services(work)


@sessions.command("delete")
def delete_session(session_id: str, user: Whose = None) -> None:
    """Delete a session for good: messages, runs, events, checkpoints."""

    async def work(services: Services) -> None:
        await services.sessions.delete(session_id, await operator_of(services, user))
        out.print(f"session {session_id} deleted")

    with_services(work)


@sessions.command("sweep")
def sweep_sessions() -> None:
    """Delete now what has outlived its period (RETENTION_*); a running server does it by itself."""

    async def work(services: Services) -> None:
        swept = await services.retention.sweep()
        more = ", and there is more" if swept.more else ""
        out.print(f"{swept.sessions} sessions and {swept.keys} idempotency keys deleted{more}")

    with_services(work)


@sessions.command("rebuild")
def rebuild_sessions(
    session_id: Annotated[str | None, typer.Argument(help="Only this one; without it, all of everybody.")] = None,
) -> None:
    """Derive the simplified view again from the raw messages."""

    async def work(services: Services) -> None:
        ids = [session_id] if session_id else await services.sessions.every_id()
        lines = 0
        for one in track(ids, "rebuilding", console=out, disable=not out.is_terminal):
            lines += await services.sessions.rebuild(one)
            await asyncio.sleep(0)
        out.print(f"{len(ids)} sessions, {lines} lines")

    with_services(work)
