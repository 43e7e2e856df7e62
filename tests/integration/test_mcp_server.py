"""Our agents as tools of MCP, used by the official SDK's client, and by people who mean no good."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from mcp import ClientSession, McpError
from mcp.types import CallToolResult, TextContent

from api import mcp as mcp_door
from config.settings import ProviderSettings, Settings
from tests.fakes.house import House, open_house
from tests.fakes.mcp_client import mcp_session
from tests.fakes.providers import TEXT, FakeProvider, Reply

pytestmark = pytest.mark.anyio

Opener = Callable[[Settings], Awaitable[House]]

BOTH = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.fixture(scope="module")
async def shared(shared_settings: Settings) -> AsyncIterator[House]:
    async with open_house(shared_settings) as opened:
        yield opened


@pytest.fixture
async def fed(open_with: Opener, settings: Settings, provider: FakeProvider) -> House:
    """A house whose model does what the test says."""
    server = settings.server.model_copy(update={"heartbeat": 0.05, "cors_origins": ("https://app.example",)})
    providers = ProviderSettings(
        discover_local=False, openai_base_url=f"{provider.url}/v1", default_model="openai/gpt-4o-mini"
    )
    return await open_with(settings.model_copy(update={"server": server, "providers": providers}))


def text_of(result: CallToolResult) -> str:
    [block] = result.content
    assert isinstance(block, TextContent)
    return block.text


def asking(agent: str, message: str, **more: Any) -> dict[str, Any]:
    arguments = {"message": message, **more}
    params = {"name": agent, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}


async def test_every_agent_is_a_tool_with_its_schemas(shared: House) -> None:
    async with mcp_session(shared.url, shared.tokens["access_token"]) as session:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
    agents = {one.id: one for one in shared.services.registry.list_agents()}
    assert set(tools) == set(agents)
    for name, tool in tools.items():
        assert tool.description == agents[name].description
        assert tool.inputSchema["required"] == ["message"]
        assert set(tool.inputSchema["properties"]) == {"message", "session_id", "model"}
        assert tool.outputSchema is not None
        assert set(tool.outputSchema["properties"]) == {"response", "session_id", "run_id", "model", "usage"}


async def test_a_call_is_a_run_like_every_other(shared: House) -> None:
    async with mcp_session(shared.url, shared.tokens["access_token"]) as session:
        result = await session.call_tool("react", {"message": "What is 6 times 7?"})
        told = result.structuredContent
        assert told is not None
        again = await session.call_tool("react", {"message": "And 2 + 2?", "session_id": told["session_id"]})
    assert not result.isError
    assert text_of(result) == told["response"]
    assert "42" in told["response"]
    assert (told["model"], told["usage"]["total_tokens"] > 0) == ("offline/rules", True)
    run = (await shared.client.get(f"/api/runs/{told['run_id']}")).json()
    assert (run["status"], run["agent"], run["session_id"]) == ("completed", "react", told["session_id"])
    assert again.structuredContent is not None
    assert again.structuredContent["session_id"] == told["session_id"]
    messages = (await shared.client.get(f"/api/sessions/{told['session_id']}/messages")).json()["messages"]
    assert [message["role"] for message in messages].count("user") == 2


async def test_who_asks_for_progress_is_told_tools_and_text(shared: House) -> None:
    told: list[tuple[float, str | None]] = []

    async def listen(progress: float, _total: float | None, message: str | None) -> None:
        told.append((progress, message))

    async with mcp_session(shared.url, shared.tokens["access_token"]) as session:
        result = await session.call_tool("react", {"message": "What is 6 times 7?"}, progress_callback=listen)
    assert told[0][1] == "calls calculator"
    assert len(told) > 1
    assert told[1][1]
    assert text_of(result).startswith(told[1][1])
    places = [place for place, _ in told]
    assert places == sorted(set(places)), "progress only grows"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "message: Field required"),
        ({"message": " "}, "message is empty"),
        ({"message": 7}, "message:"),
        ({"message": "x", "temperature": 1}, "temperature: Extra inputs"),
        ({"message": "x", "session_id": "a b"}, "session_id:"),
        ({"message": "x", "session_id": "nobody-has-this"}, "There is no such session."),
        ({"message": "x", "model": "nobody/this"}, "does not exist"),
    ],
)
async def test_a_failure_is_a_result_that_a_model_can_read(
    shared: House, arguments: dict[str, Any], words: str
) -> None:
    async with mcp_session(shared.url, shared.tokens["access_token"]) as session:
        result = await session.call_tool("simple", arguments)
    assert result.isError
    assert words in text_of(result)


async def test_an_unknown_tool_is_an_error_of_the_protocol(shared: House) -> None:
    async with mcp_session(shared.url, shared.tokens["access_token"]) as session:
        with pytest.raises(McpError, match="Unknown tool") as caught:
            await session.call_tool("nobody", {"message": "x"})
    assert caught.value.error.code == -32602


async def test_a_session_of_somebody_else_is_as_unknown_as_one_that_is_not(shared: House) -> None:
    await shared.add_user("eve")
    eve = (await shared.log_in("eve", "a good password")).json()["access_token"]
    async with mcp_session(shared.url, shared.tokens["access_token"]) as session:
        mine = (await session.call_tool("simple", {"message": "secret"})).structuredContent
    assert mine is not None
    async with mcp_session(shared.url, eve) as session:
        theirs = await session.call_tool("simple", {"message": "x", "session_id": mine["session_id"]})
        unknown = await session.call_tool("simple", {"message": "x", "session_id": "not-there"})
    assert theirs.isError
    assert text_of(theirs) == text_of(unknown) == "There is no such session."


async def test_a_key_sees_and_calls_only_its_agents(shared: House) -> None:
    made = await shared.client.post("/auth/keys", json={"name": "k", "scopes": ["completion"], "agents": ["simple"]})
    assert made.status_code == 201, made.text
    async with mcp_session(shared.url, made.json()["key"]) as session:
        assert [tool.name for tool in (await session.list_tools()).tools] == ["simple"]
        assert not (await session.call_tool("simple", {"message": "x"})).isError
        with pytest.raises(McpError, match="Available: simple") as caught:
            await session.call_tool("react", {"message": "x"})
    with_nobody = str(caught.value)
    assert "react'" in with_nobody


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer rk_wrong"}, {"x-api-key": "rk_wrong"}])
async def test_a_stranger_is_told_to_log_in(shared: House, headers: dict[str, str]) -> None:
    answer = await shared.anyone.post("/mcp", json=PING, headers={**BOTH, **headers})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_key_without_the_scope_is_refused(shared: House) -> None:
    made = await shared.client.post("/auth/keys", json={"name": "r", "scopes": ["runs"]})
    headers = {**BOTH, "authorization": f"Bearer {made.json()['key']}"}
    answer = await shared.anyone.post("/mcp", json=PING, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_without_sessions_there_is_nothing_else_to_do(shared: House, method: str) -> None:
    answer = await shared.client.request(method, "/mcp", headers={"accept": "text/event-stream"})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_a_page_of_somebody_else_is_refused(fed: House) -> None:
    foreign = await fed.client.post("/mcp", json=PING, headers={**BOTH, "origin": "https://evil.example"})
    assert (foreign.status_code, foreign.json()["code"]) == (403, "unknown_origin")
    ours = await fed.client.post("/mcp", json=PING, headers={**BOTH, "origin": "https://app.example"})
    assert (ours.status_code, ours.json()["result"]) == (200, {})
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "mcp-protocol-version"}
    leave = await fed.anyone.options("/mcp", headers={"origin": "https://app.example", **asked})
    assert leave.status_code == 200


BODIES: list[tuple[str, bytes, int, int]] = [
    ("nothing", b"", 400, -32700),
    ("not json", b"hello", 400, -32700),
    ("cut", b'{"jsonrpc": "2.0"', 400, -32700),
    ("invalid utf-8", b'{"jsonrpc": "\xff"}', 400, -32700),
    ("half a surrogate pair", b'{"jsonrpc": "2.0", "id": "\\ud800", "method": "ping"}', 400, -32700),
    ("nan", b'{"jsonrpc": "2.0", "id": NaN, "method": "ping"}', 400, -32700),
    ("too deep to read", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400, -32700),
    ("deep", b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b'{"a":' * 500 + b"1" + b"}" * 501, 400, -32600),
    ("batch", b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', 400, -32600),
    ("empty batch", b"[]", 400, -32600),
    ("null", b"null", 400, -32600),
    ("no version", b'{"id": 1, "method": "ping"}', 400, -32600),
    ("wrong version", b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', 400, -32600),
    ("huge id", b'{"jsonrpc": "2.0", "id": ' + b"9" * 400 + b', "method": "ping"}', 400, -32700),
    ("large id", b'{"jsonrpc": "2.0", "id": 18446744073709551615, "method": "ping"}', 400, -32600),
    ("long id", b'{"jsonrpc": "2.0", "id": "' + b"x" * 100_000 + b'", "method": "ping"}', 400, -32600),
    ("half an id", b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping", "params": 3}', 400, -32600),
    ("params are a list", b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}', 400, -32600),
    ("unknown method", b'{"jsonrpc": "2.0", "id": 1, "method": "prompts/list"}', 200, -32601),
    ("no arguments at all", b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}', 200, -32602),
    ("a name that is none", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":{}}}', 200, -32602),
    ("initialize without", b'{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}', 200, -32602),
]


@pytest.mark.parametrize("accept", ["application/json, text/event-stream", "application/json"])
@pytest.mark.parametrize(("name", "body", "status", "code"), BODIES, ids=[body[0] for body in BODIES])
async def test_rubbish_is_a_clear_error(
    shared: House, name: str, body: bytes, status: int, code: int, accept: str
) -> None:
    answer = await shared.client.post("/mcp", content=body, headers={**BOTH, "accept": accept})
    assert answer.status_code == status, answer.text
    raw = answer.text.removeprefix("event: message\ndata: ")
    assert json.loads(raw)["error"]["code"] == code
    assert len(answer.content) < 2_000, "the input is not echoed"


async def test_a_version_from_the_future_is_refused_by_name(shared: House) -> None:
    answer = await shared.client.post("/mcp", json=PING, headers={**BOTH, "mcp-protocol-version": "2999-01-01"})
    assert answer.status_code == 400
    assert "2025-11-25" in answer.json()["error"]["message"]
    params = {"protocolVersion": "2999-01-01", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    answer = await shared.client.post("/mcp", json=message, headers=BOTH)
    assert answer.json()["result"]["protocolVersion"] == "2025-11-25"


async def test_five_megabytes_are_too_large(shared: House) -> None:
    answer = await shared.client.post("/mcp", content=b'{"a": "' + b"x" * 5_000_000 + b'"}', headers=BOTH)
    assert answer.status_code == 413


async def test_another_content_type_is_refused(shared: House) -> None:
    answer = await shared.client.post("/mcp", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


@pytest.mark.parametrize("message", [{"jsonrpc": "2.0", "method": "notifications/initialized"},
                                     {"jsonrpc": "2.0", "id": 1, "result": {}}])  # fmt: skip
async def test_what_needs_no_answer_gets_none(shared: House, message: dict[str, Any]) -> None:
    answer = await shared.client.post("/mcp", json=message, headers=BOTH)
    assert (answer.status_code, answer.content) == (202, b"")


async def test_who_reads_no_stream_gets_one_json_object(shared: House) -> None:
    headers = {**BOTH, "accept": "application/json"}
    answer = await shared.client.post("/mcp", json=asking("simple", "x"), headers=headers)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["result"]["structuredContent"]["model"] == "offline/rules"


async def test_a_usage_that_nobody_told_is_null_and_fits_the_schema(fed: House, provider: FakeProvider) -> None:
    provider.then(Reply(fault="usage_missing"))
    async with mcp_session(fed.url, fed.tokens["access_token"]) as session:
        await session.list_tools()  # the client checks what comes against the schema
        result = await session.call_tool("simple", {"message": "x"})
    assert result.structuredContent is not None
    assert result.structuredContent["response"] == TEXT
    assert result.structuredContent["usage"] is None


async def test_a_silent_model_is_covered_by_heartbeats(fed: House, provider: FakeProvider) -> None:
    provider.then(Reply(words=("a", "b"), pause=0.2))
    answer = await fed.client.post("/mcp", json=asking("simple", "x"), headers=BOTH)
    frames = answer.text.split("\n\n")
    assert frames.count(": ping") >= 2
    assert json.loads(frames[-2].split("data: ")[1])["result"]["content"][0]["text"] == "ab"


@pytest.mark.parametrize("accept", ["application/json, text/event-stream", "application/json"])
@pytest.mark.parametrize("progress", [True, False])
async def test_a_client_that_leaves_cancels_the_run(
    fed: House, provider: FakeProvider, accept: str, progress: bool
) -> None:
    provider.then(Reply(fault="hang_before"))
    message = asking("simple", "x")
    if progress:
        message["params"]["_meta"] = {"progressToken": "t"}

    asked = asyncio.create_task(fed.client.post("/mcp", json=message, headers={**BOTH, "accept": accept}))
    with anyio.fail_after(10):
        await provider.begun.wait()
        asked.cancel()
        await provider.abort_seen.wait()
        while True:
            runs = (await fed.client.get("/api/runs")).json()["runs"]
            if runs[0]["status"] != "running":
                break
            await asyncio.sleep(0.01)
    assert runs[0]["status"] == "cancelled"
    assert fed.services.agents.open_runs == 0


async def told_session(house: House) -> str:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    return (await house.client.post("/mcp", json=message, headers=BOTH)).headers["mcp-session-id"]


async def test_a_client_that_says_so_cancels_its_run_and_only_its_own(fed: House, provider: FakeProvider) -> None:
    await fed.add_user("eve")
    eve = {"authorization": f"Bearer {(await fed.log_in('eve', 'a good password')).json()['access_token']}"}
    mine, other = await told_session(fed), await told_session(fed)
    assert mine != other
    provider.then(Reply(fault="hang_before"))
    headers = {**BOTH, "mcp-session-id": mine}
    asked = asyncio.create_task(fed.client.post("/mcp", json=asking("simple", "x"), headers=headers))

    async def cancel(session: str, number: object, **more: str) -> None:
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}}
        answer = await fed.client.post("/mcp", json=message, headers={**BOTH, "mcp-session-id": session, **more})
        assert answer.status_code == 202

    with anyio.fail_after(10):
        await provider.begun.wait()
        await cancel(other, 7)
        await cancel(mine, 8)
        await cancel(mine, [7])
        await cancel(mine, 7, **eve)
        assert not provider.abort_seen.is_set()
        assert (await fed.client.get("/api/runs")).json()["runs"][0]["status"] == "running"
        await cancel(mine, 7)
        await provider.abort_seen.wait()
        answer = await asked
    assert (answer.status_code, "result" in answer.text, "error" in answer.text) == (200, False, False)
    assert (await fed.client.get("/api/runs")).json()["runs"][0]["status"] == "cancelled"
    assert fed.app.state.mcp._going == {}


async def test_a_provider_that_fails_is_told_without_its_words(fed: House, provider: FakeProvider) -> None:
    provider.default = Reply(status=401, error={"message": "bad key sk-secret", "type": "x"})
    async with mcp_session(fed.url, fed.tokens["access_token"]) as session:
        result = await session.call_tool("simple", {"message": "x"})
    assert result.isError
    assert "sk-secret" not in text_of(result)
    assert "openai" in text_of(result)


async def test_a_fault_of_ours_tells_nothing(shared: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_args: object, **_more: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(shared.services.agents, "invoke", broken)
    async with mcp_session(shared.url, shared.tokens["access_token"]) as session:
        result = await session.call_tool("simple", {"message": "x"})
    assert (result.isError, text_of(result)) == (True, "Something went wrong on our side.")


async def test_without_the_extra_the_door_says_what_is_missing(
    settings: Settings, open_with: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    house = await open_with(settings)
    monkeypatch.setattr(mcp_door.importlib, "import_module", absent)
    answer = await house.client.post("/mcp", json=PING, headers=BOTH)
    assert (answer.status_code, answer.json()["code"]) == (503, "mcp_not_installed")
    assert "--extra mcp" in answer.json()["detail"]
    monkeypatch.undo()
    assert (await house.client.post("/completion", json={"message": "x"})).status_code == 200


async def test_many_calls_at_once_keep_apart(shared: House) -> None:
    async def one(session: ClientSession, number: int) -> None:
        result = await session.call_tool("simple", {"message": f"number {number}."})
        assert text_of(result).endswith(f"number {number}.")

    async with mcp_session(shared.url, shared.tokens["access_token"]) as session, asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(one(session, number))
