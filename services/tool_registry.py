"""Which tools there are: those of `graphs/tools/`, of `plugins/*_tool.py`, and of the entry points `routeur.tools`."""

import logging
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from langchain_core.tools import BaseTool

from services.plugin_modules import load_file, modules_of_package

logger = logging.getLogger(__name__)


class UnknownTool(LookupError):
    """An agent's config.yaml names a tool that nobody registered."""


class ToolRegistry:
    """Tools by name. A broken tool file is left out with its reason and stops nobody else."""

    def __init__(self) -> None:
        self._tools: dict[str, BaseTool] = {}
        self._broken: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """Every usable tool, sorted."""
        return sorted(self._tools)

    @property
    def broken(self) -> dict[str, str]:
        """Tool files that could not be loaded, and why."""
        return dict(self._broken)

    def register_tool(self, tool: BaseTool) -> None:
        """Add one tool; a later one of the same name takes the place of the earlier, and the log says so."""
        if tool.name in self._tools:
            logger.warning("tool registered twice, the later one counts", extra={"tool": tool.name})
        self._tools[tool.name] = tool

    def get_tools(self, names: Iterable[str]) -> tuple[BaseTool, ...]:
        """The tools of those names, in that order.

        Raises:
            UnknownTool: one of them does not exist; the message names it and those that do.
        """
        found = []
        for name in names:
            if name not in self._tools:
                raise UnknownTool(f"there is no tool {name!r}; there are: {', '.join(self.names) or 'none'}")
            found.append(self._tools[name])
        return tuple(found)

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
