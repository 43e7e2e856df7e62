"""The service by itself: what it resolves before it speaks."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, MessagesState, StateGraph

from config.settings import AgentSettings, ProviderSettings, Settings
from core.database.engine import open_database
from core.metrics import Metrics
from domain.agents import AgentSpec
from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.errors import AgentNotFound, Forbidden, ModelNotFound, RateLimited, Unavailable
from domain.events import RunStarted
from domain.models import CompletionRequest
from domain.users import User
from graphs.base_graph import build_base_graph
from graphs.builder import AgentGraph, GraphContext
from graphs.checkpointing import Checkpoints
from services.agent_registry import AgentRegistry
from services.agent_service import AgentService
from services.llm_service import LLMService, open_llm_service
from services.open_runs import OpenRuns
from services.run_recorder import open_recorder
from services.tool_registry import ToolRegistry
from tests.fakes.house import house_settings

pytestmark = pytest.mark.anyio

CALLER = Principal(UserId("u"), "ada", frozenset({Scope.COMPLETION}), CredentialKind.API_KEY, "k")


@pytest.fixture
async def llm() -> AsyncIterator[LLMService]:
    async with open_llm_service(Settings(providers=ProviderSettings(discover_local=False))) as opened:
        yield opened


@pytest.fixture
def registry() -> AgentRegistry:
    made = AgentRegistry(ToolRegistry())
    made.register_agent("simple", build_base_graph)
    pinned = AgentSpec.model_validate(
        {"name": "P", "model": "offline/rules", "parameters": {"max_tokens": 3}, "timeout": 9}
    )
    made.register_agent("pinned", build_base_graph, spec=pinned)
    return made


@pytest.fixture(autouse=True)
async def record(tmp_path: Path, template: Path) -> AsyncIterator[None]:
    """Where runs are written down; its first admin is CALLER."""
    settings = house_settings(tmp_path / "data", template)
    async with open_database(settings) as database, open_recorder(database.records, lambda _: None) as recorder:
        async with database.unit_of_work() as work:
            now = datetime.now(UTC)
            await work.users.create(
                User(id="u", username="ada", password_hash="x", scopes=frozenset(), created_at=now, updated_at=now)
            )
        RECORD.update(store=database.records, recorder=recorder, checkpoints=Checkpoints(settings))
        yield


RECORD: dict[str, Any] = {}


def service(llm: LLMService, registry: AgentRegistry, **more: object) -> AgentService:
    settings = AgentSettings.model_validate(more)
    return AgentService(llm, registry, OpenRuns(Metrics(), settings.max_concurrent_runs), settings, **RECORD)


def asking(**more: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"message": "hello", **more})


async def test_invoke_is_stream_collected(llm: LLMService, registry: AgentRegistry) -> None:
    agents = service(llm, registry)
    whole = await agents.invoke(asking(), CALLER)
    last = [envelope.event async for envelope in await agents.stream(asking(), CALLER)][-1]
    assert last.kind == "run.finished"
    assert (last.output, last.usage, last.model, last.finish_reason) == (
        whole.response, whole.usage, whole.model, whole.finish_reason,
    )  # fmt: skip


async def test_nothing_has_happened_before_the_first_event_is_asked_for(
    llm: LLMService, registry: AgentRegistry
) -> None:
    agents = service(llm, registry)
    run = await agents.stream(asking(), CALLER)
    assert agents.open_runs == 0
    async for envelope in run:
        assert isinstance(envelope.event, RunStarted)
        assert agents.open_runs == 1
        break


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"agent": "nobody"}, AgentNotFound),
        ({"model": "nobody/x"}, ModelNotFound),
        ({"model": "openai/gpt-4o"}, ModelNotFound),
    ],
)
async def test_what_cannot_be_resolved_is_an_error_before_the_stream(
    llm: LLMService, registry: AgentRegistry, asked: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await service(llm, registry).stream(asking(**asked), CALLER)


async def test_an_agents_own_parameters_count_and_the_callers_win(llm: LLMService, registry: AgentRegistry) -> None:
    agents = service(llm, registry)
    own = await agents.invoke(asking(agent="pinned"), CALLER)
    assert (own.usage and own.usage.output_tokens, own.finish_reason) == (3, "length")
    wider = await agents.invoke(asking(agent="pinned", max_tokens=1_000), CALLER)
    assert wider.finish_reason == "stop"


async def test_an_agents_timeout_is_never_longer_than_the_houses(llm: LLMService, registry: AgentRegistry) -> None:
    assert (await service(llm, registry).stream(asking(agent="pinned"), CALLER)).limit == 9
    assert (await service(llm, registry, max_execution_time=2).stream(asking(agent="pinned"), CALLER)).limit == 2


async def test_a_key_opens_only_what_is_on_its_list(llm: LLMService, registry: AgentRegistry) -> None:
    fenced = Principal(
        UserId("u"), "ada", CALLER.scopes, CredentialKind.API_KEY, "k",
        allowed_models=frozenset({"openai/gpt-4o"}), allowed_agents=frozenset({"pinned"}),
    )  # fmt: skip
    agents = service(llm, registry)
    with pytest.raises(Forbidden, match="agent 'simple'"):
        await agents.stream(asking(), fenced)
    with pytest.raises(Forbidden, match="model 'offline/rules'"):
        await agents.stream(asking(agent="pinned"), fenced)


async def test_too_many_runs_at_once_are_told_to_wait(llm: LLMService, registry: AgentRegistry) -> None:
    agents = service(llm, registry, max_concurrent_runs=1)
    batches = (await agents.stream(asking(), CALLER)).batches()
    await anext(batches)
    with pytest.raises(RateLimited) as caught:
        await agents.stream(asking(), CALLER)
    assert caught.value.retry_after == 1
    await batches.aclose()
    assert agents.open_runs == 0
    await agents.invoke(asking(), CALLER)


async def test_a_broken_builder_is_unavailable(llm: LLMService, registry: AgentRegistry) -> None:
    registry.register_agent("bad", lambda context: 1)  # type: ignore[arg-type,return-value]
    with pytest.raises(Unavailable):
        await service(llm, registry).stream(asking(agent="bad"), CALLER)


async def test_a_graph_is_told_who_asks_and_cannot_be_lied_to(llm: LLMService, registry: AgentRegistry) -> None:
    seen: list[object] = []

    def build(context: GraphContext) -> AgentGraph:
        async def node(state: MessagesState, config: RunnableConfig) -> dict[str, object]:
            seen.append({key: config["metadata"][key] for key in ("user_id", "request")})
            return {"messages": [AIMessage("ok")]}

        graph = StateGraph(MessagesState)
        graph.add_node("node", node)
        graph.add_edge(START, "node")
        graph.add_edge("node", END)
        return graph

    registry.register_agent("asking", build)
    lies = {"user_id": "somebody else", "langgraph_checkpoint_ns": "x", "langgraph_node": "y", "thread_id": "z"}
    answer = await service(llm, registry).invoke(asking(agent="asking", metadata=lies), CALLER)
    assert answer.response == "ok"
    assert seen == [{"user_id": "u", "request": lies}]


async def test_a_caller_who_leaves_while_the_run_is_written_holds_no_session(
    llm: LLMService, registry: AgentRegistry
) -> None:
    agents = service(llm, registry)
    first = await agents.invoke(asking(), CALLER)
    leaving = asyncio.create_task(agents.stream(asking(session_id=first.session_id), CALLER))
    store = RECORD["store"]
    begun = store.begin_run
    written = asyncio.Event()

    async def noticed(start: Any) -> Any:
        written.set()
        return await begun(start)

    store.begin_run = noticed
    await written.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    again = await agents.invoke(asking(session_id=first.session_id), CALLER)
    assert again.session_id == first.session_id
