"""The reference: a byte relay, Starlette in front and one pooled aiohttp session behind, and nothing in between.

It reads no JSON, checks no token and counts nothing. A server in Python that does more than this costs more than
this, so every figure of ours is told as a ratio to it. `RELAY_UPSTREAM` names the provider (`http://.../v1`).
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

PATH = "/v1/chat/completions"


def create_app() -> Starlette:
    """The relay to `RELAY_UPSTREAM`.

    Raises:
        KeyError: `RELAY_UPSTREAM` is not set.
    """
    return relay_to(os.environ["RELAY_UPSTREAM"])


def relay_to(upstream: str) -> Starlette:
    """The relay to `upstream`, for example `http://127.0.0.1:9000/v1`."""
    target = upstream + "/chat/completions"

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            app.state.session = session
            yield

    async def forward(request: Request) -> Response:
        session: aiohttp.ClientSession = request.app.state.session
        answer = await session.post(
            target, data=await request.body(), headers={"content-type": request.headers["content-type"]}
        )
        kind = answer.headers["content-type"]
        if kind.startswith("text/event-stream"):
            return StreamingResponse(_pass_on(answer), answer.status, {"content-type": kind})
        async with answer:
            return Response(await answer.read(), answer.status, {"content-type": kind})

    return Starlette(routes=[Route(PATH, forward, methods=["POST"])], lifespan=lifespan)


async def _pass_on(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The bytes as they come. A client that leaves closes the provider's connection too."""
    async with answer:
        async for piece in answer.content.iter_any():
            yield piece
