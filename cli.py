"""The side door: `routeur serve | worker | run | runs | transcribe | chat | sessions | doctor | settings | ...`."""

import asyncio
import gc
import sys
from typing import Annotated

import typer
import uvicorn
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from app import create_app, server_options
from cli_audio import transcribe
from cli_runs import run_agent, runs, worker
from cli_sessions import sessions
from config.environment import env_example, load_settings
from config.settings import SettingsError
from core.logging import setup_logging
from domain.auth import DEFAULT_SCOPES, Scope
from domain.errors import RouteurError
from domain.events import RunFinished, TextDelta, ToolFinished, ToolStarted
from domain.models import CompletionRequest
from domain.users import NewApiKey, NewUser, UserChange
from services.agent_stream import RunStream
from services.container import Services
from terminal import checked, err, operator_of, out, with_services


cli = typer.Typer(no_args_is_help=True, add_completion=False, help="One authenticated door for models and agents.")
users = typer.Typer(no_args_is_help=True, help="Who may log in.")
keys = typer.Typer(no_args_is_help=True, help="API keys, for programs.")
cli.add_typer(users, name="users")
cli.add_typer(keys, name="keys")
cli.add_typer(sessions, name="sessions")
cli.add_typer(runs, name="runs")
cli.command("run")(run_agent)
cli.command("transcribe")(transcribe)
cli.command("worker")(worker)


def main() -> None:
    """The console script: errors of ours are a line, not a trace."""
    try:
        cli()
    except (SettingsError, RouteurError) as error:
        err.print(Text(f"error: {error}", style="bold red"))
        sys.exit(2)


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PORT); 0 picks a free one.")] = None,
) -> None:
    """Start the router and say how to reach it."""
    settings = load_settings()
    over = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update={"server": settings.server.model_copy(update=over)})
    setup_logging(settings.log, debug=settings.server.debug)
    server = settings.server
    options = {"host": server.host, "port": server.port, **server_options(settings)}
    if server.workers > 1:
        uvicorn.run("app:app", workers=server.workers, **options)
        return
    config = uvicorn.Config(lambda: create_app(settings, on_ready=greet), factory=True, **options)
    listening = config.bind_socket()
    listening.set_inheritable(False)  # else a program that we have started keeps the port after a crash of ours
    listening.listen(config.backlog)  # who pastes the call before the loop turns waits a moment, and is not refused
    address = _address(server.host, listening.getsockname()[1])

    def greet(services: Services, made_up: str | None) -> None:
        out.print(_welcome(services, address, made_up))
        username = services.settings.security.admin_username
        # never wrapped: it is there to be copied
        out.print(Text(_paste(address, username, made_up) + "\n", "bold"), soft_wrap=True)
        # What is here now stays: the garbage collector need not walk through it again (a tenth of each request).
        gc.collect()
        gc.freeze()

    uvicorn.Server(config).run(sockets=[listening])


@cli.command("settings")
def show_settings(
    example: Annotated[bool, typer.Option("--example", help="Print .env.example.")] = False,
) -> None:
    """The settings in force, secrets hidden; or every setting there is."""
    if example:
        sys.stdout.write(env_example())
        return
    settings = load_settings()
    table = Table("setting", "value", title="Settings in force")
    for group, values in settings.model_dump(mode="json").items():
        for name, value in values.items():
            table.add_row(f"{group}.{name}", str(value))
    out.print(table)


@cli.command()
def models() -> None:
    """What can be called, by provider."""

    async def work(services: Services) -> None:
        table = Table("model", "kind", "context", "$ / M in", "$ / M out", "available", title="Models")
        for model in (await services.llm.list_available_models()).models:
            price = model.price
            table.add_row(
                f"[bold]{model.id}[/] (default)" if model.default else model.id,
                model.kind,
                str(model.context_window or "?"),
                str(price.input) if price else "?",
                str(price.output) if price else "?",
                "[green]yes[/]" if model.available else f"[red]{model.unavailable_reason}[/]",
            )
        out.print(table)

    with_services(work)


@cli.command()
def agents() -> None:
    """The agents, and what is wrong with the broken ones."""

    async def work(services: Services) -> None:
        await services.tools.settled()
        out.print(_agents_table(services))

    with_services(work)


@cli.command()
def chat(
    question: Annotated[list[str] | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    agent: Annotated[str | None, typer.Option(help="Which agent (DEFAULT_AGENT).")] = None,
    model: Annotated[str | None, typer.Option(help="provider/name (the agent's, or DEFAULT_MODEL).")] = None,
    session: Annotated[str | None, typer.Option(help="Go on with this session; without it, a new one.")] = None,
    user: Annotated[str | None, typer.Option(help="Whose conversation it is (ADMIN_USERNAME).")] = None,
) -> None:
    """Talk to an agent here in the terminal; no server, no login. It is recorded like every other conversation."""

    async def work(services: Services) -> None:
        made_up = await services.users.ensure_admin()
        if made_up is not None:
            err.print(f"first admin: [bold]{services.settings.security.admin_username}[/] / [bold yellow]{made_up}[/]")
        operator = await operator_of(services, user)
        continued, asked = session, False
        once = " ".join(question or [])
        while once or sys.stdin.isatty() or not asked:
            words = once or await asyncio.to_thread(_ask)
            if not words:
                return
            asked = True
            request = _asking(words, agent, model, continued)
            run = await services.agents.stream(request, operator)
            await _tell(run)
            if once:
                return
            continued = run.session_id

    with_services(work)


@cli.command()
def doctor() -> None:
    """Look at everything that has to be right: settings, database, providers, agents, tools."""
    sick = False

    async def work(services: Services) -> None:
        nonlocal sick
        checks: list[tuple[str, str, str | None]] = []
        await services.database.ping()
        checks.append(("database", services.database.dialect, None))
        known = await services.llm.list_available_models()
        for provider in known.providers:
            count = sum(model.provider == provider.name for model in known.models)
            checks.append((f"provider {provider.name}", f"{count} models", provider.unavailable_reason))
        default = services.llm.default_model_id
        checks.append(("default model", default or "-", None if default else "no model is configured"))
        await services.tools.settled()
        for one in services.registry.list_agents():
            checks.append((f"agent {one.id}", one.name, one.unavailable_reason))
        checks.append(("tools", ", ".join(services.tools.names), None))
        checks += [(f"tools of {name}", "-", reason) for name, reason in services.tools.broken.items()]
        table = Table("what", "found", "state", title="routeur doctor")
        for what, found, trouble in checks:
            table.add_row(what, found, Text(trouble or "ok", "red" if trouble else "green"))
        out.print(table)
        sick = any(trouble for _, _, trouble in checks)

    with_services(work)
    if sick:
        raise typer.Exit(1)


@users.command("add")
def add_user(
    username: str,
    scopes: Annotated[str, typer.Option(help="Comma separated; default: everything but metrics and admin.")] = "",
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True)] = "",
) -> None:
    """Make a user; the password is asked for."""
    new = checked(lambda: NewUser(username=username, password=password, scopes=_scopes(scopes) or DEFAULT_SCOPES))

    async def work(services: Services) -> None:
        made = await services.users.create(new)
        out.print(f"user [bold]{made.username}[/] made, scopes: {' '.join(made.scopes)}")

    with_services(work)


@users.command("list")
def list_users() -> None:
    """Every user."""

    async def work(services: Services) -> None:
        table = Table("username", "id", "scopes", "state", title="Users")
        for user in await services.users.list_users():
            state = "[red]disabled[/]" if user.disabled else "[green]active[/]"
            table.add_row(user.username, user.id, " ".join(user.scopes), state)
        out.print(table)

    with_services(work)


@users.command("disable")
def disable_user(
    username: str, undo: Annotated[bool, typer.Option("--undo", help="Let them in again.")] = False
) -> None:
    """Refuse a user; their tokens and keys end on the next request, in running servers too."""

    async def work(services: Services) -> None:
        user = await services.users.find(username)
        await services.users.change(user.id, UserChange(disabled=not undo))
        out.print(f"user [bold]{username}[/] {'enabled' if undo else 'disabled'}")

    with_services(work)


@keys.command("create")
def create_key(
    username: str,
    name: Annotated[str, typer.Option(help="What it is for.")] = "cli",
    scopes: Annotated[str, typer.Option(help="Comma separated; default: all of the user's but admin.")] = "",
    days: Annotated[int | None, typer.Option(help="Days until it ends; default: never.", min=1)] = None,
) -> None:
    """Make an API key for a user; it is shown this once."""
    seconds = days * 86_400 if days else None
    new = checked(lambda: NewApiKey(name=name, scopes=_scopes(scopes) or None, expires_in=seconds))

    async def work(services: Services) -> None:
        user = await services.users.find(username)
        made = await services.api_keys.create(user.id, new)
        err.print(f"key [bold]{made.name}[/] ({made.id}), scopes: {' '.join(made.scopes)}; it is not shown again:")
        sys.stdout.write(f"{made.key}\n")

    with_services(work)


@keys.command("list")
def list_keys(username: str) -> None:
    """A user's API keys."""

    async def work(services: Services) -> None:
        user = await services.users.find(username)
        table = Table("name", "id", "key", "scopes", "ends", "state", title=f"Keys of {username}")
        for key in await services.api_keys.list_keys(user.id):
            ends = key.expires_at.strftime("%Y-%m-%d") if key.expires_at else "never"
            state = "[red]revoked[/]" if key.revoked else "[green]active[/]"
            table.add_row(key.name, key.id, key.hint, " ".join(key.scopes), ends, state)
        out.print(table)

    with_services(work)


@keys.command("revoke")
def revoke_key(username: str, key_id: str) -> None:
    """End one of a user's API keys."""

    async def work(services: Services) -> None:
        user = await services.users.find(username)
        await services.api_keys.revoke(user.id, key_id)
        out.print(f"key {key_id} revoked")

    with_services(work)


def _ask() -> str:
    try:
        return input("you  ").strip()
    except EOFError:
        return ""


def _asking(words: str, agent: str | None, model: str | None, session: str | None) -> CompletionRequest:
    return checked(lambda: CompletionRequest(message=words, agent=agent, model=model, session_id=session))


async def _tell(run: RunStream) -> str:
    """Show a run as it happens; the text of its answer."""
    async for envelope in run:
        event = envelope.event
        if isinstance(event, TextDelta):
            out.print(event.text, end="\n" if event.done else "", markup=False, highlight=False, soft_wrap=True)
        elif isinstance(event, ToolStarted):
            out.print(Text(f"-> {event.name} {event.arguments}", "dim"))
        elif isinstance(event, ToolFinished):
            out.print(Text(f"<- {event.output}", "dim" if event.ok else "red"))
        elif isinstance(event, RunFinished):
            cost = (
                f"{event.usage.input_tokens} + {event.usage.output_tokens} tokens" if event.usage else "usage unknown"
            )
            out.print(Text(f"{event.model}, {cost}", "dim"))
            return event.output
    if run.error is not None:
        err.print(Text(f"error: {run.error}", style="bold red"))
    return ""


def _scopes(text: str) -> frozenset[Scope]:
    return frozenset(checked(lambda: [Scope(word) for word in text.replace(",", " ").split()]))


def _address(host: str, port: int) -> str:
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104 - compared
    return f"http://{shown}:{port}"


def _welcome(services: Services, address: str, made_up: str | None) -> Group:
    """What a newcomer needs: where it is, how to get in, what will answer, a call to paste."""
    settings = services.settings
    login = Text.assemble(
        ("address  ", "dim"),
        (address, "bold cyan"),
        ("   docs ", "dim"),
        (f"{address}/docs", "cyan"),
        ("\nclients  ", "dim"),
        (f"{address}/v1", "cyan"),
        ("   for everything that speaks OpenAI", "dim"),
    )
    username = settings.security.admin_username
    if made_up is not None:
        login.append("\nlogin    ", "dim").append(username, "bold").append(" / ", "dim").append(made_up, "bold yellow")
        login.append("   shown this once; keep it", "dim")
    default = services.llm.default_model_id
    login.append("\nmodel    ", "dim").append(
        default or "none: see the settings", "bold green" if default else "bold red"
    )
    if default and default.startswith("offline/"):
        login.append("   the embedded demonstration, by rules; set OPENAI_API_KEY for a real one", "dim")
    providers = Table("provider", "from", "address", "state", box=None, pad_edge=False, header_style="dim")
    for provider in services.llm.providers():
        state = Text(
            "configured" if provider.available else provider.unavailable_reason or "",
            "green" if provider.available else "red",
        )
        providers.add_row(provider.name, provider.source, provider.base_url or "inside", state)
    return Group(
        Panel(
            Group(login, Text(), providers, Text(), _agents_table(services)),
            title="routeur-ia-api",
            border_style="cyan",
        ),
        Text("Paste this into another terminal:", "dim"),
    )


def _agents_table(services: Services) -> Table:
    table = Table("agent", "what it does", "state", box=None, pad_edge=False, header_style="dim")
    for agent in services.registry.list_agents():
        state = Text("ready", "green") if agent.available else Text(agent.unavailable_reason or "", "red")
        table.add_row(f"{agent.id} (default)" if agent.default else agent.id, agent.description, state)
    return table


def _paste(address: str, username: str, made_up: str | None) -> str:
    password = made_up or "$ADMIN_PASSWORD"
    reader = "python3 -c 'import json,sys; print(json.load(sys.stdin)[\"access_token\"])'"
    question = '{"message": "What is 6 times 7?", "agent": "react"}'
    return (
        f"TOKEN=$(curl -s {address}/auth/token -d grant_type=password -d username={username} \\\n"
        f'  -d password="{password}" | {reader})\n'
        f'curl -N {address}/completion/stream -H "Authorization: Bearer $TOKEN" \\\n'
        f"  -H 'Content-Type: application/json' -d '{question}'"
    )


if __name__ == "__main__":
    main()
