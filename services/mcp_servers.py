"""The MCP servers of MCP_SERVERS, watched in the background: the house opens without waiting for any of them."""

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from config.mcp_settings import McpSettings
from services.tool_registry import ToolRegistry

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_mcp_servers(settings: McpSettings, tools: ToolRegistry) -> AsyncIterator[None]:
    """Ask each server for its tools, again and again while it does not answer; end what we started with the context."""
    if not settings.servers:
        yield
        return
    for name in settings.servers:
        tools.add_server(name)
    watching = asyncio.create_task(_watch_all(settings, tools), name="MCP servers")
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _watch_all(settings: McpSettings, tools: ToolRegistry) -> None:
    try:
        # An extra, and half a second of imports: not before it is asked for, and meanwhile others have their turn.
        client = await asyncio.to_thread(importlib.import_module, "services.mcp_client")
    except ImportError:
        for name in settings.servers:
            tools.server_failed(name, "MCP needs a package that is not installed: uv sync --extra mcp")
        logger.warning("MCP_SERVERS needs the extra mcp")
        return
    async with asyncio.TaskGroup() as group:
        for name, server in settings.servers.items():
            group.create_task(client.connect(name, server, settings, tools).watch(), name=f"MCP server {name}")
