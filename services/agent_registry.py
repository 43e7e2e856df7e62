"""Which agents there are, and how each one's graph is built.

Found are: folders `graphs/<agent>/`, entry points `routeur.agents`, folders `plugins/<agent>/`; registered by hand:
`register_agent(key, builder, description)`. A folder holds `graph.py`, `config.yaml` and optionally `prompts/*.md`.
A broken agent is listed as unavailable, with its reason, and stops nobody else.
"""

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from langchain_core.language_models.chat_models import BaseChatModel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph, StateGraph
from pydantic import ValidationError

import graphs
from domain.agents import AGENT_ID_PATTERN, AgentSpec
from domain.enums import SessionKind
from domain.errors import AgentNotFound, InvalidRequest, Unavailable
from domain.models import AgentInfo
from graphs.builder import AgentGraph, GraphBuilder, GraphContext
from services.plugin_modules import load_from_folder
from services.tool_registry import ToolRegistry, UnknownTool

logger = logging.getLogger(__name__)

_AGENT_ID = re.compile(AGENT_ID_PATTERN)
_SECRET_NAME = re.compile(r"(?i)secret|password|passwd|token|credential|api_?key|private_?key")
_MAX_CONFIG_BYTES = 1_000_000


class BrokenAgent(Exception):
    """An agent's files cannot be used; the message says which and why, and is shown in the list of agents."""


@dataclass(frozen=True, slots=True)
class RegisteredAgent:
    """One agent. Without a builder it cannot be called, and `reason` says why.

    `door`: of an agent of the house that is no partner in talk, how it is asked instead. It has no chat model.
    """

    id: str
    spec: AgentSpec
    builder: GraphBuilder | None
    prompts: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    door: str | None = None


class AgentRegistry:
    """Agents by id."""

    def __init__(self, tools: ToolRegistry, *, default_agent: str = "simple") -> None:
        self._tools = tools
        self._agents: dict[str, RegisteredAgent] = {}
        self.default_agent = default_agent

    def register_agent(
        self,
        key: str,
        builder: Callable[..., AgentGraph],
        description: str = "",
        *,
        spec: AgentSpec | None = None,
        prompts: Mapping[str, str] | None = None,
        door: str | None = None,
    ) -> None:
        """Add an agent, or replace the one of that id.

        Args:
            key: the id that callers use; lower case letters, digits, `-` and `_`.
            builder: takes a `GraphContext`, or just the chat model when its parameter is called `llm` (or is annotated
                as a BaseChatModel); gives back a graph, compiled or not.
            description: shown in lists; `spec.description` where a spec is given and this is empty.
            door: how it is asked, when not with messages; it is in no list then, and nobody chats with it.

        Raises:
            ValueError: `key` is no agent id, or a tool of `spec` does not exist.
        """
        if not _AGENT_ID.fullmatch(key):
            raise ValueError(f"{key!r} is no agent id (lower case letters, digits, - and _, a letter first)")
        spec = spec or AgentSpec(name=key)
        if description:
            spec = spec.model_copy(update={"description": description})
        try:
            self._tools.check(spec.tools)
        except UnknownTool as error:
            raise ValueError(str(error)) from error
        if door is not None and key in self._agents:
            logger.warning("an agent has a name that the house needs; it cannot be called", extra={"agent": key})
        self._agents[str(key)] = RegisteredAgent(
            str(key), spec, _takes_context(builder), dict(prompts or {}), door=door
        )

    def get(self, key: str) -> RegisteredAgent:
        """The agent of that id, ready to be built.

        Raises:
            AgentNotFound: there is none; the message lists those there are.
            Unavailable: it is there and broken; the message says why.
        """
        agent = self._agents.get(key)
        if agent is None:
            raise AgentNotFound(key, sorted(self._agents))
        reason = self._why_not(agent)
        if reason is not None:
            raise Unavailable(f"The agent '{key}' cannot be used: {reason}", code="agent_unavailable", param="agent")
        return agent

    def get_partner(self, key: str) -> RegisteredAgent:
        """The agent of that id, to be talked with.

        Raises:
            AgentNotFound, Unavailable: as `get`.
            InvalidRequest: it is not asked with messages.
        """
        agent = self.get(key)
        if agent.door is not None:
            raise InvalidRequest(
                f"The agent '{key}' is not asked with messages: {agent.door}", code="agent_not_for_chat", param="agent"
            )
        return agent

    async def settle(self, key: str) -> None:
        """Wait for the MCP servers of that agent's tools, while they are asked for the first time."""
        agent = self._agents.get(key)
        if agent is not None and self._tools.uses_servers(agent.spec.tools):
            await self._tools.settled(agent.spec.tools)

    def version_of(self, agent: RegisteredAgent) -> int:
        """Another number: the agent's tools may have changed, and a graph that was built before is out of date."""
        return self._tools.version if self._tools.uses_servers(agent.spec.tools) else 0

    def kind_of(self, key: str) -> SessionKind:
        """What sessions and runs of that agent are counted as.

        Raises:
            AgentNotFound: there is none of that id.
        """
        if key not in self._agents:
            raise AgentNotFound(key, sorted(self._agents))
        return self._agents[key].spec.kind

    def run_limits(self) -> dict[str, int]:
        """How many background runs of an agent may go on at once, where its config says so."""
        found = {key: agent.spec.background.max_concurrent for key, agent in self._agents.items()}
        return {key: limit for key, limit in found.items() if limit is not None}

    def idle_limit(self, key: str) -> float | None:
        """Seconds that a background run of that agent may be silent; None: as long as it likes."""
        agent = self._agents.get(key)
        return None if agent is None else agent.spec.idle_timeout

    def get_builder(self, key: str) -> GraphBuilder:
        """The builder of that agent; raises as `get`."""
        builder = self.get(key).builder
        if builder is None:  # pragma: no cover - get() has refused it
            raise AgentNotFound(key)
        return builder

    def compile(
        self, agent: RegisteredAgent, llm: BaseChatModel, checkpointer: BaseCheckpointSaver[Any] | None = None
    ) -> CompiledStateGraph[Any, Any, Any, Any]:
        """The agent's graph around `llm`, with `checkpointer` as its memory.

        Raises:
            Unavailable: the builder failed or gave back something that is no graph, or a tool is not there any more.
        """
        builder = self.get_builder(agent.id)
        try:
            tools = self._tools.get_tools(agent.spec.tools)
        except UnknownTool as error:
            message = f"The agent '{agent.id}' cannot be used: {error}"
            raise Unavailable(message, code="agent_unavailable", param="agent") from error
        try:
            built = builder(GraphContext(llm, agent.spec, tools, agent.prompts))
            if isinstance(built, StateGraph):
                return built.compile(checkpointer=checkpointer, name=agent.id)
            if isinstance(built, CompiledStateGraph):
                return built.copy({"checkpointer": checkpointer}) if checkpointer is not None else built
            raise TypeError(f"the builder gave back {type(built).__name__}, not a LangGraph graph")
        except Exception as error:
            logger.exception("agent could not be built", extra={"agent": agent.id})
            raise Unavailable(
                f"The agent '{agent.id}' cannot be used: its builder failed ({type(error).__name__}).",
                code="agent_unavailable",
                param="agent",
            ) from error

    def list_agents(self) -> list[AgentInfo]:
        """Every agent that can be talked with, by id; the broken ones with their reason."""
        return [self._info(agent) for _, agent in sorted(self._agents.items()) if agent.door is None]

    def info(self, key: str) -> AgentInfo:
        """One agent, broken or not.

        Raises:
            AgentNotFound: there is none of that id.
        """
        if key not in self._agents:
            raise AgentNotFound(key, sorted(self._agents))
        return self._info(self._agents[key])

    def shown_spec(self, key: str) -> AgentSpec:
        """An agent's config, fit to be shown.

        Raises:
            AgentNotFound: there is none of that id.
        """
        if key not in self._agents:
            raise AgentNotFound(key, sorted(self._agents))
        spec = self._agents[key].spec
        return spec.model_copy(update={"metadata": _without_secrets(spec.metadata)})

    def discover(self, plugins_dir: Path) -> None:
        """Find and load every agent: ours, then entry points, then plugins, so that your own may replace ours."""
        for folder in _agent_folders(Path(graphs.__path__[0])):
            self._add_folder(folder, partial(import_module, f"graphs.{folder.name}.graph"))
        for point in entry_points(group="routeur.agents"):
            try:
                self.register_agent(point.name, point.load())
            except Exception as error:  # somebody else's package may fail in any way
                self._mark_broken(point.name, error)
        for folder in _agent_folders(plugins_dir):
            self._add_folder(folder, partial(load_from_folder, folder, "graph"))

    def _add_folder(self, folder: Path, load: Callable[[], Any]) -> None:
        try:
            spec = read_spec(folder / "config.yaml")
            builder = getattr(load(), spec.workflow.builder, None)
            if not callable(builder):
                raise BrokenAgent(f"graph.py has no function {spec.workflow.builder}")
            prompts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("prompts/*.md"))}
            self.register_agent(folder.name, builder, spec=spec, prompts=prompts)
        except Exception as error:  # a plugin may fail in any way; the others must not care
            self._mark_broken(folder.name, error)

    def _mark_broken(self, key: str, error: Exception) -> None:
        logger.warning("agent is broken", extra={"agent": key}, exc_info=error)
        told = str(error) if isinstance(error, BrokenAgent | ValueError) else f"{type(error).__name__}: {error}"
        self._agents[key] = RegisteredAgent(key, AgentSpec(name=key), None, reason=told[:500])

    def _why_not(self, agent: RegisteredAgent) -> str | None:
        if agent.builder is None:
            return agent.reason or "it has no builder"
        return self._tools.missing(agent.spec.tools)

    def _info(self, agent: RegisteredAgent) -> AgentInfo:
        reason = self._why_not(agent)
        return AgentInfo(
            id=agent.id,
            name=agent.spec.name,
            description=agent.spec.description,
            model=agent.spec.model,
            tools=list(agent.spec.tools),
            available=reason is None,
            unavailable_reason=reason,
            default=agent.id == self.default_agent,
        )


def read_spec(path: Path) -> AgentSpec:
    """The validated `config.yaml` at `path`.

    Raises:
        BrokenAgent: it is missing, no YAML, or does not fit `AgentSpec`; the message names the fields.
    """
    if not path.is_file():
        raise BrokenAgent("config.yaml is missing")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise BrokenAgent("config.yaml is larger than 1 MB")
    try:
        return AgentSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BrokenAgent(f"config.yaml is no YAML: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors()]
        raise BrokenAgent(f"config.yaml: {'; '.join(problems)}") from error


def _without_secrets(value: Any) -> Any:
    """The same, without what stands under a name that promises a secret."""
    if isinstance(value, dict):
        return {
            key: "[redacted]" if _SECRET_NAME.search(str(key)) else _without_secrets(one) for key, one in value.items()
        }
    return [_without_secrets(one) for one in value] if isinstance(value, list) else value


def _agent_folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(
        folder for folder in parent.iterdir() if (folder / "graph.py").is_file() or (folder / "config.yaml").is_file()
    )


def _takes_context(builder: Callable[..., AgentGraph]) -> GraphBuilder:
    """`builder` as one that takes a GraphContext; one that takes the model alone is wrapped."""
    parameters = [
        parameter
        for parameter in inspect.signature(builder).parameters.values()
        if parameter.default is parameter.empty
    ]
    if parameters and (parameters[0].name == "llm" or parameters[0].annotation is BaseChatModel):
        return lambda context: builder(context.llm)
    return builder
