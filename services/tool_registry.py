"""Which tools there are: those of `graphs/tools/`, of `plugins/*_tool.py`, of the entry points `routeur.tools`, and
those of the MCP servers of MCP_SERVERS, which come and go while we run (`services/mcp_servers.py`).
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from langchain_core.tools import BaseTool

from services.plugin_modules import load_file, modules_of_package

logger = logging.getLogger(__name__)

#: Under `tools:` of a config.yaml, `mcp:<server>` means every tool of that MCP server.
WHOLE_SERVER = "mcp:"


class UnknownTool(LookupError):
    """An agent's config.yaml names a tool that nobody registered, or whose MCP server is not there now."""


@dataclass(slots=True)
class _Server:
    """An MCP server as it stands: its tools, or the reason why there are none."""

    reason: str | None = "it has not answered yet"
    tools: dict[str, BaseTool] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    tried: asyncio.Event = field(default_factory=asyncio.Event)


class ToolRegistry:
    """Tools by name. A broken tool file is left out with its reason and stops nobody else.

    Attributes:
        version: grows whenever the tools of an MCP server change.
    """

    def __init__(self) -> None:
        self._tools: dict[str, BaseTool] = {}
        self._broken: dict[str, str] = {}
        self._servers: dict[str, _Server] = {}
        self.version = 0

    @property
    def names(self) -> list[str]:
        """Every usable tool, sorted."""
        return sorted([*self._tools, *(name for server in self._servers.values() for name in server.tools)])

    @property
    def broken(self) -> dict[str, str]:
        """Tool files that could not be loaded, MCP servers that do not answer (`mcp:<server>`), and why."""
        found = dict(self._broken)
        for name, server in self._servers.items():
            found |= server.left_out
            if server.reason is not None:
                found[WHOLE_SERVER + name] = server.reason
        return found

    def register_tool(self, tool: BaseTool) -> None:
        """Add one tool; a later one of the same name takes the place of the earlier, and the log says so."""
        if tool.name in self._tools:
            logger.warning("tool registered twice, the later one counts", extra={"tool": tool.name})
        self._tools[tool.name] = tool

    def get_tools(self, names: Iterable[str]) -> tuple[BaseTool, ...]:
        """The tools of those names, in that order, each once.

        Raises:
            UnknownTool: one of them does not exist, or not now; the message names it and those that do.
        """
        names = list(names)
        self.check(names)
        found: dict[str, BaseTool] = {}
        for name in names:
            server = self._server_of(name)
            if server is None:
                found[name] = self._tools[name]
                continue
            if (reason := self._why_not(name, server)) is not None:
                raise UnknownTool(reason)
            tools = self._servers[server].tools
            found |= dict(sorted(tools.items())) if name.startswith(WHOLE_SERVER) else {name: tools[name]}
        return tuple(found.values())

    def check(self, names: Iterable[str]) -> None:
        """Could these ever be had? What an MCP server will offer is known only when it answers.

        Raises:
            UnknownTool: one of them is neither a tool nor of an MCP server of MCP_SERVERS.
        """
        for name in names:
            if name in self._tools or self._server_of(name) is not None:
                continue
            if name.startswith(WHOLE_SERVER):
                known = ", ".join(sorted(self._servers)) or "none"
                raise UnknownTool(f"there is no MCP server {name[len(WHOLE_SERVER) :]!r}; MCP_SERVERS has: {known}")
            raise UnknownTool(f"there is no tool {name!r}; there are: {', '.join(self.names) or 'none'}")

    # -- MCP servers --

    def add_server(self, name: str) -> None:
        """There is to be an MCP server of that name; agents may name its tools from now on."""
        self._servers[name] = _Server()

    def server_answered(self, name: str, tools: Iterable[BaseTool], left_out: Mapping[str, str]) -> None:
        """These are its tools now. One that is named like a tool of ours is left out: nobody outside replaces ours."""
        server = self._servers[name]
        offered = list(tools)
        server.tools = {tool.name: tool for tool in offered if tool.name not in self._tools}
        taken = {tool.name: "a tool of ours has that name" for tool in offered if tool.name in self._tools}
        server.left_out = {**left_out, **taken}
        server.reason = None
        self.version += 1
        server.tried.set()

    def server_failed(self, name: str, reason: str) -> None:
        """It is not there; what it offered is gone until it answers again."""
        server = self._servers[name]
        server.reason, server.tools, server.left_out = reason, {}, {}
        server.tried.set()

    def uses_servers(self, names: Iterable[str]) -> bool:
        """Is one of these of an MCP server?"""
        return bool(self._servers) and any(self._server_of(name) is not None for name in names)

    def missing(self, names: Iterable[str]) -> str | None:
        """Why these cannot all be had now; None: they can."""
        if not self._servers:
            return None
        for name in names:
            server = self._server_of(name)
            if server is not None and (reason := self._why_not(name, server)) is not None:
                return reason
        return None

    async def settled(self, names: Iterable[str] | None = None) -> None:
        """Wait until the MCP servers of these tools (of all) have answered or failed once."""
        servers = set(self._servers) if names is None else {self._server_of(name) for name in names}
        for name in servers:
            if name is not None:
                await self._servers[name].tried.wait()

    def _server_of(self, name: str) -> str | None:
        """The MCP server whose tool that is, or would be."""
        if name in self._tools:
            return None
        whole = name.startswith(WHOLE_SERVER)
        server, found, _ = (name[len(WHOLE_SERVER) :], True, "") if whole else name.partition("_")
        return server if found and server in self._servers else None

    def _why_not(self, name: str, server: str) -> str | None:
        found = self._servers[server]
        if found.reason is not None:
            return f"the MCP server '{server}' is not there: {found.reason}"
        if name.startswith(WHOLE_SERVER) or name in found.tools:
            return None
        return f"the MCP server '{server}' has no tool {name!r}; it has: {', '.join(sorted(found.tools)) or 'none'}"

    # -- discovery --

    def discover(self, plugins_dir: Path) -> None:
        """Load the built-in tools, then entry points, then plugins, so that your own may replace ours."""
        for name, load in modules_of_package("graphs.tools"):
            self._add(name, load)
        for point in entry_points(group="routeur.tools"):
            self._add(point.name, point.load)
        for path in sorted(plugins_dir.glob("*_tool.py")) if plugins_dir.is_dir() else []:
            self._add(path.stem, lambda path=path: load_file(path))

    def _add(self, name: str, load: object) -> None:
        try:
            loaded = load() if callable(load) else load
            tools = [loaded] if isinstance(loaded, BaseTool) else _tools_in(loaded)
        except Exception as error:  # a plugin may fail in any way; the others must not care
            logger.exception("tool could not be loaded", extra={"tool": name})
            self._broken[name] = f"{type(error).__name__}: {error}"
            return
        for tool in tools:
            self.register_tool(tool)


def _tools_in(module: object) -> list[BaseTool]:
    if not isinstance(module, ModuleType):
        raise TypeError(f"expected a LangChain tool or a module with tools, got {type(module).__name__}")
    return [value for name, value in vars(module).items() if isinstance(value, BaseTool) and not name.startswith("_")]
