"""Tools of real MCP servers in the hands of our agents: over HTTP, over stdio, and when the servers do not behave."""

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from pydantic import SecretStr

from config.environment import load_settings
from config.mcp_settings import McpServer, McpSettings
from config.settings import Settings, SettingsError
from services import mcp_servers
from tests.fakes.house import House, open_house
from tests.fakes.live_server import live
from tests.fakes.mcp_servers import make_server

pytestmark = pytest.mark.anyio

Opener = Callable[[Settings], Awaitable[House]]

SCRIPT = str(Path(__file__).parents[1] / "fakes" / "mcp_servers.py")
GRAPH = "from graphs.react.graph import build_graph\n"


class Guarded:
    """The MCP server behind a login, and a switch that makes it silent."""

    def __init__(self) -> None:
        self.app = make_server().streamable_http_app()
        self.silent = False
        self.asked = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.asked.set()
            if self.silent:
                await asyncio.Event().wait()
            if dict(scope["headers"]).get(b"authorization") != b"Bearer sesame":
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"who are you?"})
                return
        await self.app(scope, receive, send)


@pytest.fixture
async def listening() -> AsyncIterator[tuple[Guarded, str]]:
    guarded = Guarded()
    async with live(guarded) as url:
        yield guarded, f"{url}/mcp"


def with_servers(settings: Settings, tmp_path: Path, tools: str, **servers: McpServer) -> Settings:
    """Those servers, and an agent `clerk` with those tools."""
    folder = tmp_path / "plugins" / "clerk"
    folder.mkdir(parents=True)
    (folder / "graph.py").write_text(GRAPH)
    (folder / "config.yaml").write_text(f"name: Clerk\ntools: [{tools}]\n")
    agents = settings.agents.model_copy(update={"plugins_dir": tmp_path / "plugins"})
    mcp = McpSettings(servers=servers, timeout=20, retry_every=0.05)
    return settings.model_copy(update={"agents": agents, "mcp": mcp})


def over_http(url: str, token: str = "sesame") -> McpServer:
    return McpServer(url=url, headers={"Authorization": SecretStr(f"Bearer {token}")})


def over_stdio(*args: str) -> McpServer:
    return McpServer(command=sys.executable, args=(SCRIPT, *args), env={"FAKE_SECRET": SecretStr("a secret")})


async def ask(house: House, message: str, agent: str = "clerk") -> str:
    answer = await house.client.post("/completion", json={"message": message, "agent": agent})
    assert answer.status_code == 200, answer.text
    told: str = answer.json()["response"]
    return told


async def clerk(house: House) -> dict[str, Any]:
    found: dict[str, Any] = (await house.client.get("/agents/clerk")).json()
    return found


@asynccontextmanager
async def soon() -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Look again and again, but not for ever."""
    with anyio.fail_after(20):
        yield lambda: anyio.sleep(0.02)


async def test_an_agent_uses_a_tool_of_a_server_that_listens(
    open_with: Opener, settings: Settings, tmp_path: Path, listening: tuple[Guarded, str]
) -> None:
    house = await open_with(with_servers(settings, tmp_path, "calculator, files_add", files=over_http(listening[1])))
    assert "the sum is 5" in await ask(house, 'call files_add with {"a": 2, "b": 3}')
    info = await clerk(house)
    assert (info["available"], info["tools"]) == (True, ["calculator", "files_add"])


async def test_a_whole_server_is_named_at_once(
    open_with: Opener, settings: Settings, tmp_path: Path, listening: tuple[Guarded, str]
) -> None:
    chosen = with_servers(settings, tmp_path, '"mcp:files", files_add', files=over_http(listening[1]))
    house = await open_with(chosen)
    assert "the sum is 5" in await ask(house, 'call files_add with {"a": 2, "b": 3}')
    assert "files_picture answered:" in await ask(house, "call files_picture with {}")
    assert "read" in await ask(house, "call files_files_read_all with {}")
    broken = house.services.tools.broken
    assert [reason for name, reason in broken.items() if name.startswith("files_xxx")] == [
        "its name is longer than 64 characters"
    ]
    assert len(house.services.tools.get_tools(["mcp:files", "files_add"])) == 7


async def test_what_goes_wrong_in_a_tool_is_told_to_the_agent(
    open_with: Opener, settings: Settings, tmp_path: Path, listening: tuple[Guarded, str]
) -> None:
    chosen = with_servers(settings, tmp_path, '"mcp:files"', files=over_http(listening[1]))
    hasty = chosen.mcp.model_copy(update={"timeout": 0.5})
    house = await open_with(chosen.model_copy(update={"mcp": hasty}))
    assert "the cupboard is bare" in await ask(house, "call files_fail with {}")
    assert "The MCP server 'files' failed: it did not answer within 0.5 s." in (
        await ask(house, "call files_hang with {}")
    )
    listening[0].silent = True
    assert "it did not answer within 0.5 s" in await ask(house, 'call files_add with {"a": 2, "b": 3}')
    listening[0].silent = False
    assert "the sum is 5" in await ask(house, 'call files_add with {"a": 2, "b": 3}')


async def test_a_server_that_is_down_at_the_start_is_used_when_it_is_up(
    open_with: Opener, settings: Settings, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    house = await open_with(with_servers(settings, tmp_path, "files_add", files=over_http(f"{url}/mcp")))
    body = {"message": 'call files_add with {"a": 2, "b": 3}', "agent": "clerk"}
    refused = await house.client.post("/completion", json=body)
    assert (refused.status_code, refused.json()["code"]) == (503, "agent_unavailable")
    assert "the MCP server 'files' is not there: it cannot be reached (ConnectError)" in refused.json()["detail"]
    assert (await clerk(house))["unavailable_reason"] in refused.json()["detail"]
    assert list(house.services.tools.broken) == ["mcp:files"]
    assert (await house.client.post("/completion", json={"message": "x"})).status_code == 200
    async with at_port(port), soon() as wait:
        while not (await clerk(house))["available"]:
            await wait()
        assert "the sum is 5" in await ask(house, body["message"])
    assert "it cannot be reached" in await ask(house, body["message"])


@asynccontextmanager
async def at_port(port: int) -> AsyncIterator[None]:
    """The server, at a port that was chosen before."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(Guarded(), port=port, log_config=None, timeout_graceful_shutdown=1))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def test_the_house_opens_before_its_servers_answer(
    open_with: Opener, settings: Settings, tmp_path: Path, listening: tuple[Guarded, str]
) -> None:
    listening[0].silent = True
    house = await open_with(with_servers(settings, tmp_path, "files_add", files=over_http(listening[1])))
    with anyio.fail_after(10):
        await listening[0].asked.wait()
    info = await clerk(house)
    assert (info["available"], info["unavailable_reason"]) == (
        False,
        "the MCP server 'files' is not there: it has not answered yet",
    )
    refused = await house.client.post("/completion", json={"message": "x", "agent": "clerk"})  # waits for the first try
    assert (refused.status_code, "it did not answer within 5 s" in refused.json()["detail"]) == (503, True)


async def test_a_server_that_refuses_us_says_so_and_our_key_is_not_told(
    open_with: Opener,
    settings: Settings,
    tmp_path: Path,
    listening: tuple[Guarded, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen = with_servers(settings, tmp_path, "files_add", files=over_http(f"{listening[1]}?key=hush", "wrong"))
    house = await open_with(chosen)
    refused = await house.client.post("/completion", json={"message": "x", "agent": "clerk"})
    assert "it answered with status 401" in refused.json()["detail"]
    shown = refused.text + caplog.text + repr(chosen.mcp) + str(house.services.tools.broken)
    assert "who are you" not in shown
    assert "hush" not in shown
    assert "Bearer wrong" not in shown


async def test_a_tool_that_the_server_does_not_have_makes_the_agent_unavailable(
    open_with: Opener, settings: Settings, tmp_path: Path, listening: tuple[Guarded, str]
) -> None:
    house = await open_with(with_servers(settings, tmp_path, "files_nothing", files=over_http(listening[1])))
    refused = await house.client.post("/completion", json={"message": "x", "agent": "clerk"})
    assert refused.status_code == 503
    assert "the MCP server 'files' has no tool 'files_nothing'; it has: files_add" in refused.json()["detail"]


@pytest.mark.parametrize("tools", ["nobody_add", '"mcp:nobody"'])
async def test_a_server_that_is_not_configured_is_an_unknown_tool(
    open_with: Opener, settings: Settings, tmp_path: Path, tools: str
) -> None:
    house = await open_with(with_servers(settings, tmp_path, tools))
    assert "there is no" in (await clerk(house))["unavailable_reason"]


async def test_one_process_serves_until_the_house_closes(settings: Settings, tmp_path: Path) -> None:
    async with open_house(with_servers(settings, tmp_path, '"mcp:local"', local=over_stdio())) as house:
        first = await ask(house, "call local_process with {}")
        again = await ask(house, "call local_process with {}")
        found = re.search(r"process (\d+) knows (.*) and None", first)
        assert found, first
        assert found[2] == "a secret"
        assert first == again
        process = psutil.Process(int(found[1]))
        assert process.is_running()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_a_process_that_dies_is_started_again(open_with: Opener, settings: Settings, tmp_path: Path) -> None:
    """And what it offers then is what the agent has: no graph that was built before serves any longer."""
    offers = tmp_path / "offers"
    offers.write_text("")
    house = await open_with(with_servers(settings, tmp_path, '"mcp:local"', local=over_stdio(str(offers))))
    before = await ask(house, "call local_process with {}")
    assert "new" not in await ask(house, "call local_late with {}")
    offers.write_text("late")
    dead = await ask(house, "call local_die with {}")
    assert "its process ended before it had answered" in dead
    assert "knows a secret" in (after := await ask(house, "call local_process with {}"))
    assert before != after
    assert "local_late answered: new" in await ask(house, "call local_late with {}")
    kept = [key for key in house.services.agents._graphs if key[0] == "clerk"]
    assert len(kept) == 1, "the older graph is not kept"


async def test_calls_of_one_process_do_not_wait_for_each_other(
    open_with: Opener, settings: Settings, tmp_path: Path
) -> None:
    mark = tmp_path / "hangs"
    local = McpServer(command=sys.executable, args=(SCRIPT,), env={"FAKE_MARK": SecretStr(str(mark))})
    house = await open_with(with_servers(settings, tmp_path, '"mcp:local"', local=local))
    hanging = asyncio.create_task(ask(house, "call local_hang with {}"))
    async with soon() as wait:
        while not mark.exists():
            await wait()
    assert "the sum is 5" in await ask(house, 'call local_add with {"a": 2, "b": 3}')
    assert not hanging.done()
    assert "its process ended before it had answered" in await ask(house, "call local_die with {}")
    assert "its process ended before it had answered" in await hanging


async def test_a_command_that_is_not_there_is_a_broken_server(
    open_with: Opener, settings: Settings, tmp_path: Path
) -> None:
    absent = McpServer(command=str(tmp_path / "secret-place"))
    house = await open_with(with_servers(settings, tmp_path, '"mcp:local"', local=absent))
    refused = await house.client.post("/completion", json={"message": "x", "agent": "clerk"})
    assert "the MCP server 'local' is not there: it cannot be reached (FileNotFoundError)" in refused.json()["detail"]
    assert "secret-place" not in refused.text


async def test_without_the_extra_everything_else_works(
    open_with: Opener, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(mcp_servers.importlib, "import_module", absent)
    tools = mcp_servers.ToolRegistry()
    chosen = with_servers(settings, tmp_path, '"mcp:local"', local=over_stdio()).mcp
    async with mcp_servers.open_mcp_servers(chosen, tools):
        await tools.settled()
        assert "uv sync --extra mcp" in tools.broken["mcp:local"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "MCP_SERVERS: Expecting"),
        ('{"a_b": {"url": "http://x"}}', "MCP_SERVERS"),
        ('{"a": {}}', "give either url or command"),
        ('{"a": {"url": "http://x", "command": "y"}}', "give either url or command"),
        ('{"a": {"url": "ftp://x"}}', "MCP_SERVERS"),
        ('{"a": {"url": "http://x", "args": ["y"]}}', "args and env go with command"),
        ('{"a": {"command": "x", "headers": {"k": "hush"}}}', "headers go with url"),
        ('{"a": {"url": "http://x", "headers": {"k": "hush\\nx: y"}}}', "one printable line"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings({"MCP_SERVERS": value}, None)
    assert "hush" not in str(caught.value)


def test_the_setting_reads_as_documented() -> None:
    files = '"files": {"url": "https://h/mcp", "headers": {"Authorization": "hush"}}'
    value = "{" + files + ', "local": {"command": "uvx", "args": ["s"], "env": {"K": "hush"}}}'
    servers = load_settings({"MCP_SERVERS": value, "MCP_TIMEOUT": "7"}, None).mcp
    assert (servers.timeout, set(servers.servers)) == (7, {"files", "local"})
    assert "hush" not in repr(servers)
