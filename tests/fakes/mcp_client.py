"""A client of MCP: the official SDK's own, with a credential of the test's choosing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client


@asynccontextmanager
async def mcp_session(url: str, credential: str) -> AsyncIterator[ClientSession]:
    """An initialised session with the house at `url`."""
    async with (
        httpx.AsyncClient(headers={"authorization": f"Bearer {credential}"}, timeout=20) as client,
        streamable_http_client(f"{url}/mcp", http_client=client) as (incoming, outgoing, _),
        ClientSession(incoming, outgoing) as session,
    ):
        await session.initialize()
        yield session
