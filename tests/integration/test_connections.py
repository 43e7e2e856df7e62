"""Connections that misbehave, and streams that have nothing to say."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import TaskStatus

from api.http_protocol import GuardedHttpProtocol
from app import create_app, server_options
from config.settings import ProviderSettings, Settings
from tests.fakes.house import House, cheap_hasher, open_house, parse_events
from tests.fakes.live_server import live
from tests.fakes.providers import FakeProvider, Reply

pytestmark = pytest.mark.anyio

Opener = Callable[[Settings], Awaitable[House]]


class Impatient(GuardedHttpProtocol):
    patience = 0.2


@pytest.fixture(scope="module")
async def url(shared_settings: Settings) -> AsyncIterator[str]:
    app = create_app(shared_settings, hasher=cheap_hasher())
    options = {**server_options(shared_settings), "http": Impatient, "timeout_graceful_shutdown": 1}
    async with live(app, **options) as address:
        yield address


async def said(url: str, *pieces: bytes) -> bytes:
    """What the server answers to those bytes until it closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        with anyio.fail_after(10):
            return await reader.read()
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


async def test_a_connection_that_says_nothing_is_closed(url: str) -> None:
    assert await said(url) == b""


async def test_a_head_that_does_not_end_is_given_up(url: str) -> None:
    assert (await said(url, b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: a")).startswith(b"HTTP/1.1 408")


async def test_a_body_that_does_not_come_is_given_up(url: str) -> None:
    head = (
        b"POST /auth/token HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
        b"content-type: application/x-www-form-urlencoded\r\n\r\n"
    )
    assert (await said(url, head, b"grant_type")).startswith(b"HTTP/1.1 408")


async def test_a_head_that_is_too_large_is_refused(url: str) -> None:
    head = b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-more: " + b"a" * 200_000
    assert (await said(url, head))[:12] in (b"HTTP/1.1 431", b"reset")


async def test_rubbish_is_a_400(url: str) -> None:
    assert (await said(url, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello tls\r\n\r\n")).startswith(
        b"HTTP/1.1 400"
    )


async def test_a_patient_stream_is_not_cut_by_impatience(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    """Heartbeats come while the provider is silent, and the answer after them is whole."""
    server = settings.server.model_copy(update={"heartbeat": 0.05})
    providers = ProviderSettings(discover_local=False, openai_base_url=f"{provider.url}/v1")
    house = await open_with(settings.model_copy(update={"server": server, "providers": providers}))
    provider.then(Reply(words=("a", "b", "c"), pause=0.2))
    body = {"message": "x", "model": "openai/m"}
    async with house.client.stream("POST", "/completion/stream", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-model"] == "openai/m"
        raw = await response.aread()
    frames = raw.decode().split("\n\n")
    assert frames.count(": ping") >= 3
    assert frames[-1] == ""
    assert frames[-2].split("\n")[1] == "event: run.finished"


async def test_more_runs_than_allowed_wait_outside(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    agents = settings.agents.model_copy(update={"max_concurrent_runs": 1})
    providers = ProviderSettings(discover_local=False, openai_base_url=f"{provider.url}/v1")
    house = await open_with(settings.model_copy(update={"agents": agents, "providers": providers}))
    provider.then(Reply(fault="hang_before"))
    body: dict[str, Any] = {"message": "x", "model": "openai/m"}
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:

            async def occupy() -> None:
                await house.client.post("/completion", json=body)

            group.start_soon(occupy)
            await provider.begun.wait()
            refused = await house.client.post("/completion", json=body)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            group.cancel_scope.cancel()
        await provider.abort_seen.wait()
        while house.services.agents.open_runs:  # noqa: ASYNC110 - LangGraph winds up a moment later
            await asyncio.sleep(0)
    assert (await house.client.post("/completion", json=body)).status_code == 200


async def test_metrics_are_for_those_who_may_see_them(house: House) -> None:
    await house.client.post("/completion", json={"message": "hello"})
    await house.client.get("/agents/simple")
    assert (await house.anyone.get("/metrics")).status_code == 401
    await house.add_user("ada")
    token = (await house.log_in("ada", "a good password")).json()["access_token"]
    headers = {"authorization": f"Bearer {token}"}
    assert (await house.anyone.get("/metrics", headers=headers)).status_code == 403
    told = (await house.client.get("/metrics")).text
    assert 'routeur_runs_total{agent="simple",outcome="finished"} 1.0' in told
    assert 'routeur_http_requests_total{method="POST",route="/completion",status="200"} 1.0' in told
    assert 'route="/agents/{agent_id}"' in told
    assert 'routeur_tokens_total{direction="input",model="offline/rules"}' in told


async def test_the_documentation_page_may_run_its_own_scripts_and_no_other(house: House) -> None:
    page = await house.anyone.get("/docs")
    assert page.status_code == 200
    assert "cdn.jsdelivr.net" in page.headers["content-security-policy"]
    assert "cdn" not in (await house.anyone.get("/health")).headers["content-security-policy"]


async def test_graphs_are_compiled_once_for_each_choice_and_kept_bounded(open_with: Opener, settings: Settings) -> None:
    agents = settings.agents.model_copy(update={"graph_cache_size": 3})
    house = await open_with(settings.model_copy(update={"agents": agents}))
    service = house.services.agents
    for temperature in (0.1, 0.1, 0.2, 0.3, 0.4, 0.5):
        await house.client.post("/completion", json={"message": "x", "temperature": temperature})
    assert service.compiled == 5
    assert service.kept == 3


@pytest.mark.parametrize(
    ("host", "status"),
    [("api.example.com", 200), ("API.example.com:8000", 200), ("x.inner.example", 200), ("evil.example", 421),
     ("", 421), ("inner.example", 421), ("api.example.com.evil.example", 421), ("[::1]:80", 421)],
)  # fmt: skip
async def test_only_our_own_names_are_served(open_with: Opener, settings: Settings, host: str, status: int) -> None:
    allowed = ("api.example.com", "*.inner.example", "127.0.0.1")
    server = settings.server.model_copy(update={"allowed_hosts": allowed})
    house = await open_with(settings.model_copy(update={"server": server}))
    answer = await house.anyone.get("/health", headers={"host": host})
    assert answer.status_code == status
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_named_origin_may_call_from_a_browser(open_with: Opener, settings: Settings) -> None:
    server = settings.server.model_copy(update={"cors_origins": ("https://app.example",)})
    house = await open_with(settings.model_copy(update={"server": server}))
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    leave = await house.anyone.options("/completion", headers={"origin": "https://app.example", **asked})
    assert leave.headers["access-control-allow-origin"] == "https://app.example"
    refused = await house.anyone.options("/completion", headers={"origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in refused.headers


async def test_openais_sdk_may_call_from_a_browser_and_is_told_the_session(
    open_with: Opener, settings: Settings
) -> None:
    server = settings.server.model_copy(update={"cors_origins": ("https://app.example",)})
    house = await open_with(settings.model_copy(update={"server": server}))
    sent = "authorization,content-type,x-stainless-os,x-stainless-retry-count,x-stainless-timeout,x-agent-tools"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": sent}
    origin = {"origin": "https://app.example"}
    leave = await house.anyone.options("/v1/chat/completions", headers={**origin, **asked})
    assert leave.status_code == 200, leave.text
    body = {"model": "offline/rules", "messages": [{"role": "user", "content": "Hi"}]}
    answer = await house.client.post("/v1/chat/completions", json=body, headers=origin)
    assert "x-session-id" in answer.headers["access-control-expose-headers"].split(", ")


async def test_a_stream_that_the_servers_stop_cuts_still_ends_as_it_should(
    settings: Settings, provider: FakeProvider
) -> None:
    providers = ProviderSettings(discover_local=False, openai_base_url=f"{provider.url}/v1")
    provider.then(Reply(fault="hang_between"))
    stopped = anyio.Event()
    heard: list[bytes] = []
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:

            async def serve(*, task_status: TaskStatus[House]) -> None:
                async with open_house(settings.model_copy(update={"providers": providers})) as house:
                    task_status.started(house)
                    await stopped.wait()

            house = await group.start(serve)
            async with (
                httpx.AsyncClient(base_url=house.url, headers=house.client.headers, timeout=20) as reader,
                reader.stream("POST", "/completion/stream", json={"message": "x", "model": "openai/m"}) as response,
            ):
                async for piece in response.aiter_bytes():
                    heard.append(piece)
                    stopped.set()
    events = parse_events(b"".join(heard))
    assert events[-1]["kind"] == "run.cancelled"
    assert events[-2] == {**events[-2], "kind": "text.delta", "done": True}
    assert provider.open == 0
