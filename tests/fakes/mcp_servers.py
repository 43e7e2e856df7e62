"""A real MCP server, made with the official SDK: `make_server()` to listen, this file run as a script for stdio.

As a script it takes a path: a tool is offered for each line of that file, so that a server may come back with others.
"""

import asyncio
import base64
import os
import sys
from pathlib import Path

from mcp.server.fastmcp import FastMCP, Image


def make_server() -> FastMCP:
    """Tools that work, fail, hang and die."""
    server = FastMCP("fake", stateless_http=True)

    @server.tool()
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return f"the sum is {a + b}"

    @server.tool()
    def fail() -> str:
        """Fail."""
        raise ValueError("the cupboard is bare")

    @server.tool()
    async def hang() -> str:
        """Never answer; FAKE_MARK is there when it has begun."""
        if mark := os.environ.get("FAKE_MARK"):
            Path(mark).touch()  # noqa: ASYNC240 - a test waits for it
        await asyncio.Event().wait()
        return ""

    @server.tool()
    def die() -> str:
        """Take the process along."""
        os._exit(3)

    @server.tool()
    def process() -> str:
        """Which process answers, and what it was told."""
        return f"process {os.getpid()} knows {os.environ.get('FAKE_SECRET')} and {os.environ.get('SECRET_KEY')}"

    @server.tool()
    def picture() -> Image:
        """One pixel."""
        return Image(data=base64.b64decode("iVBORw0KGgo="), format="png")

    @server.tool(name="files/read.all")
    def odd_name() -> str:
        """Has a name that OpenAI would refuse."""
        return "read"

    @server.tool(name="x" * 70)
    def long_name() -> str:
        """Has a name that nobody takes."""
        return ""

    return server


if __name__ == "__main__":
    made = make_server()
    for line in Path(sys.argv[1]).read_text().split() if len(sys.argv) > 1 else []:
        made.add_tool(lambda: "new", name=line)
    made.run("stdio")
