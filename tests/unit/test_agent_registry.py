"""Agents are found, checked, and kept apart from each other's faults."""

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.graph import END, START, MessagesState, StateGraph

from domain.agents import AgentSpec
from domain.errors import AgentNotFound, Unavailable
from graphs.base_graph import build_base_graph
from services.agent_registry import AgentRegistry
from services.agent_stream import RunStream
from services.tool_registry import ToolRegistry, UnknownTool
from tests.fakes.chat_models import ScriptedModel

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "graphs" / "README.md"
GOOD_GRAPH = "from graphs.base_graph import build_base_graph as build_graph\n"


def discovered(plugins: Path) -> AgentRegistry:
    tools = ToolRegistry()
    tools.discover(plugins)
    registry = AgentRegistry(tools)
    registry.discover(plugins)
    return registry


def write_agent(plugins: Path, name: str, graph: str = GOOD_GRAPH, config: str = "name: Test\n") -> None:
    folder = plugins / name
    folder.mkdir()
    (folder / "graph.py").write_text(graph)
    (folder / "config.yaml").write_text(config)


async def test_the_page_on_adding_an_agent_is_true(tmp_path: Path) -> None:
    """graphs/README.md, followed to the letter: its three files, then its agent is asked."""
    files = re.findall(r"`plugins/(haiku/\S+)`[^\n]*\n\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [name for name, _ in files] == ["haiku/config.yaml", "haiku/prompts/system.md", "haiku/graph.py"]
    tool_file = re.search(r"```python\n(# plugins/(dice_tool\.py)\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert tool_file
    for name, text in [*files, (tool_file[2], tool_file[1])]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    tools = ToolRegistry()
    tools.discover(tmp_path)
    assert "roll_dice" in tools.names
    registry = discovered(tmp_path)
    info = registry.info("haiku")
    assert (info.available, info.name, info.tools) == (True, "Haiku", ["clock"])
    model = ScriptedModel(script=["old pond, a frog leaps"])
    graph = registry.compile(registry.get("haiku"), model)
    run = RunStream(graph, [HumanMessage("The sea")], {}, agent="haiku", model="fake", limit=5, streams=False)
    events = await run.collect()
    assert events[-1].event.kind == "run.finished"
    assert str(model.heard[0][0].text).startswith("You answer in one haiku")


def test_the_house_comes_with_its_agents(tmp_path: Path) -> None:
    registry = discovered(tmp_path)
    assert {info.id for info in registry.list_agents() if info.available} >= {"simple", "react"}
    assert registry.info("react").tools == ["calculator", "clock"]
    assert registry.info("simple").default


@pytest.mark.parametrize(
    ("graph", "config", "reason"),
    [
        ("raise RuntimeError('boom')", "name: X\n", "RuntimeError: boom"),
        ("def build_graph(:", "name: X\n", "SyntaxError"),
        ("import there_is_no_such_module", "name: X\n", "there_is_no_such_module"),
        ("x = 1", "name: X\n", "no function build_graph"),
        (GOOD_GRAPH, "name: X\nworkflow: {builder: other}\n", "no function other"),
        (GOOD_GRAPH, "description: no name\n", "name: Field required"),
        (GOOD_GRAPH, "name: X\ncolour: red\n", "colour"),
        (GOOD_GRAPH, "name: X\ntools: [hammer]\n", "hammer"),
        (GOOD_GRAPH, "name: X\ntimeout: -1\n", "timeout"),
        (GOOD_GRAPH, "name: [unclosed\n", "no YAML"),
        (GOOD_GRAPH, "!!python/object/apply:os.system ['true']", "no YAML"),
    ],
)
def test_a_broken_agent_says_why_and_stops_nobody(tmp_path: Path, graph: str, config: str, reason: str) -> None:
    write_agent(tmp_path, "broken", graph, config)
    write_agent(tmp_path, "fine")
    registry = discovered(tmp_path)
    info = registry.info("broken")
    assert not info.available
    assert reason in (info.unavailable_reason or "")
    assert registry.info("fine").available
    assert registry.info("simple").available
    with pytest.raises(Unavailable, match="broken"):
        registry.get("broken")


def test_an_unknown_agent_is_not_found_and_the_known_are_listed(tmp_path: Path) -> None:
    with pytest.raises(AgentNotFound, match="simple"):
        discovered(tmp_path).get("nobody")


def test_a_builder_may_take_just_the_model() -> None:
    """The seed's own recipe: `builder(llm)` gives back a compiled graph."""
    registry = AgentRegistry(ToolRegistry())
    got: list[BaseChatModel] = []

    def create_custom_graph(llm: BaseChatModel) -> Any:
        got.append(llm)
        graph = StateGraph(MessagesState)
        graph.add_node("a", lambda state: {"messages": []})
        graph.add_edge(START, "a")
        graph.add_edge("a", END)
        return graph.compile()

    registry.register_agent("custom", create_custom_graph, "Description")
    model = ScriptedModel(script=[])
    registry.compile(registry.get("custom"), model)
    assert got == [model]
    assert registry.info("custom").description == "Description"


@pytest.mark.parametrize("key", ["", "Upper", "../up", "a b", "1st", "x" * 65])
def test_an_id_that_could_not_stand_in_a_path_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="no agent id"):
        AgentRegistry(ToolRegistry()).register_agent(key, build_base_graph)


def test_a_builder_that_fails_is_unavailable_not_a_crash() -> None:
    registry = AgentRegistry(ToolRegistry())
    registry.register_agent("bad", lambda context: 42)  # type: ignore[arg-type,return-value]
    with pytest.raises(Unavailable, match="builder failed"):
        registry.compile(registry.get("bad"), ScriptedModel(script=[]))


async def test_a_long_conversation_is_shown_from_its_end() -> None:
    registry = AgentRegistry(ToolRegistry())
    spec = AgentSpec.model_validate({"name": "Short", "memory": {"max_messages": 2}})
    registry.register_agent("short", build_base_graph, spec=spec, prompts={"system": "Be short."})
    model = ScriptedModel(script=["ok"])
    graph = registry.compile(registry.get("short"), model)
    await graph.ainvoke({"messages": [HumanMessage(str(number)) for number in range(5)]})
    assert [str(message.text) for message in model.heard[0]] == ["Be short.", "3", "4"]


def test_a_package_offers_agents_and_tools_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(
        "from langchain_core.tools import tool\n"
        "from graphs.base_graph import build_base_graph as builder\n"
        "@tool\ndef hammer(nail: str) -> str:\n    'Hits a nail.'\n    return nail\n"
    )
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[routeur.agents]\ntheirs = their_package:builder\nlost = no_such_package:builder\n"
        "[routeur.tools]\nhammer = their_package:hammer\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tools = ToolRegistry()
    tools.discover(tmp_path / "none")
    assert "hammer" in tools.names
    registry = AgentRegistry(tools)
    registry.discover(tmp_path / "none")
    assert registry.info("theirs").available
    assert "no_such_package" in (registry.info("lost").unavailable_reason or "")


def test_a_broken_tool_file_is_left_out_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "bad_tool.py").write_text("raise RuntimeError('boom')")
    (tmp_path / "good_tool.py").write_text(
        "from langchain_core.tools import tool\n@tool\ndef good() -> str:\n    'Good.'\n    return 'ok'\n"
    )
    tools = ToolRegistry()
    tools.discover(tmp_path)
    assert {"good", "calculator", "clock"} <= set(tools.names)
    assert tools.broken == {"bad_tool": "RuntimeError: boom"}


def offered(name: str) -> BaseTool:
    return StructuredTool.from_function(lambda: name, name=name, description=name)


def with_server(*names: str) -> ToolRegistry:
    tools = ToolRegistry()
    tools.discover(Path("none"))
    tools.add_server("files")
    if names:
        tools.server_answered("files", map(offered, names), {})
    return tools


def test_an_agent_waits_for_its_mcp_server_and_loses_it_again() -> None:
    tools = with_server()
    registry = AgentRegistry(tools)
    registry.register_agent("clerk", build_base_graph, spec=AgentSpec(name="Clerk", tools=("clock", "files_read")))
    registry.register_agent("other", build_base_graph, spec=AgentSpec(name="Other", tools=("clock",)))
    with pytest.raises(Unavailable, match="MCP server 'files' is not there: it has not answered yet"):
        registry.get("clerk")
    assert registry.info("other").available
    before = [registry.version_of(registry.get("other"))]
    tools.server_answered("files", [offered("files_read")], {})
    first = registry.version_of(registry.get("clerk"))
    tools.server_failed("files", "gone")
    assert registry.info("clerk").unavailable_reason == "the MCP server 'files' is not there: gone"
    tools.server_answered("files", [offered("files_read")], {})
    assert registry.version_of(registry.get("clerk")) > first, "its graphs are out of date"
    assert [registry.version_of(registry.get("other"))] == before, "and nobody else's"


def test_a_server_cannot_take_the_place_of_a_tool_of_ours() -> None:
    tools = with_server()
    ours = offered("files_read")
    tools.register_tool(ours)
    tools.server_answered("files", [offered("files_read"), offered("files_write")], {})
    assert tools.get_tools(["files_read"]) == (ours,)
    assert [tool.name for tool in tools.get_tools(["mcp:files"])] == ["files_write"]
    assert tools.broken == {"files_read": "a tool of ours has that name"}


@pytest.mark.parametrize("name", ["mcp:nobody", "nobody_read", "filesread", "mcp:"])
def test_a_tool_of_no_server_is_unknown_at_once(name: str) -> None:
    with pytest.raises(UnknownTool, match="there is no"):
        with_server("files_read").check([name])


def test_tools_are_given_once_and_in_order() -> None:
    tools = with_server("files_b", "files_a")
    got = tools.get_tools(["files_b", "clock", "mcp:files"])
    assert [tool.name for tool in got] == ["files_b", "clock", "files_a"]
