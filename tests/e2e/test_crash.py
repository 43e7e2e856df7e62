"""kill -9 in the middle of fifty streams: what was asked is there, what had arrived is marked, nothing stays locked."""

import asyncio
import json
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.fakes.live_server import live
from tests.fakes.processes import PASSWORD, serving
from tests.fakes.providers import FakeProvider, Reply

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

STREAMS = 50


async def test_nothing_that_was_said_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    provider = FakeProvider()
    provider.default = Reply(words=tuple(f"{number} " for number in range(10_000)), pause=0.05)
    async with live(provider) as url:
        compatible = json.dumps({"slow": {"base_url": f"{url}/v1"}})
        settings = {"ADMIN_PASSWORD": PASSWORD, "COMPATIBLE_PROVIDERS": compatible, "DEFAULT_MODEL": "slow/fake"}
        with serving(tmp_path, **settings) as server:
            address = (await asyncio.to_thread(server.wait_for, r"(http://127\.0\.0\.1:\d+)")).group(1)
            async with logged_in(address) as client:
                readers = [asyncio.create_task(read(client, number)) for number in range(STREAMS)]
                with anyio.fail_after(60):
                    await asyncio.to_thread(wait_for_drafts, tmp_path / "routeur.sqlite3")
                server.process.send_signal(signal.SIGKILL)
                heard = await asyncio.gather(*readers)
        provider.default = Reply(words=("back",))
        with serving(tmp_path, **settings) as server:
            address = (await asyncio.to_thread(server.wait_for, r"(http://127\.0\.0\.1:\d+)")).group(1)
            async with logged_in(address) as client:
                sessions = (await client.get("/api/sessions?limit=200")).json()["sessions"]
                assert len(sessions) == STREAMS
                runs = (await client.get("/api/runs?limit=200")).json()["runs"]
                assert {run["status"] for run in runs} == {"lost"}
                assert (await client.get("/api/runs?in_progress=true")).json()["runs"] == []
                asked = set()
                for session in sessions:
                    told = (await client.get(f"/api/sessions/{session['session_id']}")).json()["messages"]
                    assert [line["role"] for line in told] == ["user", "assistant"]
                    assert [line["partial"] for line in told] == [False, True]
                    asked.add(told[0]["content"])
                    assert heard[int(told[0]["content"])].startswith(told[1]["content"]) or told[1][
                        "content"
                    ].startswith(heard[int(told[0]["content"])]), "the draft is what was streamed, more or less of it"
                assert asked == {str(number) for number in range(STREAMS)}
                again = await client.post("/completion", json={"message": "x", "session_id": sessions[0]["session_id"]})
                assert (again.status_code, again.json()["response"]) == (200, "back")


@asynccontextmanager
async def logged_in(address: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=STREAMS + 10)
    async with httpx.AsyncClient(base_url=address, timeout=30, limits=limits) as client:
        form = {"grant_type": "password", "username": "admin", "password": PASSWORD}
        token = (await client.post("/auth/token", data=form)).json()["access_token"]
        client.headers["authorization"] = f"Bearer {token}"
        yield client


async def read(client: httpx.AsyncClient, number: int) -> str:
    """Read a stream to its violent end; the words that were heard."""
    heard, rest = "", ""
    try:
        async with client.stream("POST", "/completion/stream", json={"message": str(number)}) as response:
            async for chunk in response.aiter_text():
                rest += chunk
                *frames, rest = rest.split("\n\n")
                for frame in frames:
                    data: dict[str, Any] = json.loads(frame.split("data: ", 1)[1]) if "data: " in frame else {}
                    heard += data.get("text", "")
    except httpx.HTTPError:
        pass
    return heard


def wait_for_drafts(database: Path, count: int = STREAMS) -> None:
    """Return when a draft of every stream is written, with three words of it or more; that happens every second."""
    some = "SELECT count(*) FROM runs WHERE length(draft) >= 6"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        while connection.execute(some).fetchone()[0] < count:
            time.sleep(0.05)


async def test_a_direct_stream_that_the_process_died_in_is_there_as_far_as_it_had_come(tmp_path: Path) -> None:
    provider = FakeProvider()
    provider.default = Reply(words=tuple(f"{number} " for number in range(10_000)), pause=0.05)
    async with live(provider) as url:
        settings = {"ADMIN_PASSWORD": PASSWORD, "COMPATIBLE_PROVIDERS": json.dumps({"slow": {"base_url": f"{url}/v1"}})}
        question = {"model": "slow/fake", "messages": [{"role": "user", "content": "Count!"}]}
        with serving(tmp_path, **settings) as server:
            address = (await asyncio.to_thread(server.wait_for, r"(http://127\.0\.0\.1:\d+)")).group(1)
            async with logged_in(address) as client:
                sending = client.stream("POST", "/v1/chat/completions", json={**question, "stream": True})
                async with sending as answer:
                    session = answer.headers["x-session-id"]
                    with anyio.fail_after(30):
                        await asyncio.to_thread(wait_for_drafts, tmp_path / "routeur.sqlite3", 1)
                    server.kill()
                    heard = b""
                    with suppress(httpx.HTTPError):
                        async for chunk in answer.aiter_raw():
                            heard += chunk
        assert b"0 " in heard
        provider.default = Reply(words=("back",))
        with serving(tmp_path, **settings) as server:
            address = (await asyncio.to_thread(server.wait_for, r"(http://127\.0\.0\.1:\d+)")).group(1)
            async with logged_in(address) as client:
                told = (await client.get(f"/api/sessions/{session}")).json()["messages"]
                assert [(line["role"], line["partial"]) for line in told] == [("user", False), ("assistant", True)]
                assert told[1]["content"].startswith("0 1 2 ")
                assert {run["status"] for run in (await client.get("/api/runs")).json()["runs"]} == {"lost"}
                bound = {"x-session-id": session}
                again = await client.post("/v1/chat/completions", json=question, headers=bound)
                assert again.json()["choices"][0]["message"]["content"] == "back"
                assert [one["role"] for one in provider.asked[-1]["messages"]] == ["user", "assistant", "user"]
