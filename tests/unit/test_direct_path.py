"""What the direct path saves on, and must still do: notice who leaves, keep deadlines, answer as the long way does."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from api.errors import install_error_handlers
from api.middleware.lean import LeanMiddleware
from api.openai.door import add_lean_route
from api.openai.schemas import ChatRequest
from api.streaming.response import ClientLeft, while_connected
from core.http import _Clock
from domain.errors import Conflict

pytestmark = pytest.mark.anyio

Message = dict[str, Any]


class _Client:
    """Stays until `left` is set."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_a_client_that_left_at_once_is_noticed_within_a_second() -> None:
    client, cancelled = _Client(), asyncio.Event()
    client.left.set()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ClientLeft):
        await asyncio.wait_for(while_connected(client.receive, work()), 1)
    assert cancelled.is_set()


async def test_a_quick_answer_leaves_nobody_watching() -> None:
    before = asyncio.all_tasks()

    async def answer() -> int:
        return 7

    assert await while_connected(_Client().receive, answer()) == 7
    assert asyncio.all_tasks() == before


async def test_a_clock_that_is_moved_on_does_not_ring_and_one_that_is_not_does() -> None:
    clock, moves = _Clock(60), 0

    async def call() -> None:
        nonlocal moves
        async with clock:
            for _ in range(5):
                moves += 1
                clock.allow(0.05)
                await asyncio.sleep(0.02)  # longer in all than one allowance
            clock.allow(0.01)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await call()
    task = asyncio.current_task()
    assert task is not None
    assert (moves, clock.expired, task.cancelling()) == (5, True, 0)


async def test_a_clock_at_rest_ends_with_the_whole_call() -> None:
    clock = _Clock(0.05)

    async def call() -> None:
        async with clock:
            clock.allow(0.01)
            clock.rest()
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await call()
    assert clock.spent() >= 0.05


async def test_a_cancellation_from_outside_is_not_taken_for_the_clock() -> None:
    inside = asyncio.Event()

    async def call() -> None:
        async with _Clock(60) as clock:
            clock.allow(60)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("short_way", [True, False])
@pytest.mark.parametrize(("method", "status"), [("POST", 409), ("GET", 405)])
async def test_the_short_way_answers_as_the_long_one(short_way: bool, method: str, status: int) -> None:
    async def endpoint(request: Request) -> Response:
        raise Conflict("Not now.", code="busy")

    app = FastAPI()
    install_error_handlers(app)
    add_lean_route(app, "/v1/chat/completions", endpoint, body=ChatRequest, answer={"description": "an answer"})
    if short_way:
        app.add_middleware(LeanMiddleware, routes=app.routes)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": "/v1/chat/completions",
        "headers": [],
        "query_string": b"",
        "root_path": "",
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == status
    assert b'"error":{"message"' in sent[1]["body"]
    if method == "POST":
        assert scope["route"].path == "/v1/chat/completions"  # type: ignore[attr-defined] # what is counted under
