"""One conversation over every wire: the text is what the provider sent, the usage what it counted."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import SecretStr

from config.settings import CompatibleProvider, ProviderSettings, Settings
from tests.fakes.house import House, open_house, text_of
from tests.fakes.providers import INPUT, OUTPUT, TEXT, FakeProvider, Reply

pytestmark = pytest.mark.anyio

WIRES = ("openai", "mistral", "ollama", "vllm")
Opener = Callable[[Settings], Awaitable[House]]


def reaching(settings: Settings, provider: FakeProvider, **more: Any) -> Settings:
    """`settings` with every provider at the fake's address."""
    providers = ProviderSettings(
        discover_local=False,
        openai_api_key=SecretStr("sk-openai"),
        openai_base_url=f"{provider.url}/v1",
        mistral_api_key=SecretStr("mistral-key"),
        mistral_base_url=f"{provider.url}/mistral/v1",
        ollama_base_url=provider.url,
        compatible={"vllm": CompatibleProvider(base_url=f"{provider.url}/vllm/v1")},
        **more,
    )
    return settings.model_copy(update={"providers": providers})


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    async with open_house(reaching(shared_settings, shared_provider)) as house:
        yield house


def body(wire: str, **more: Any) -> dict[str, Any]:
    return {"message": "Salut", "model": f"{wire}/fake-large", **more}


@pytest.mark.parametrize("wire", WIRES)
async def test_a_whole_answer_is_what_the_provider_sent(served: House, provider: FakeProvider, wire: str) -> None:
    answer = (await served.client.post("/completion", json=body(wire))).json()
    assert answer["response"] == TEXT
    assert answer["model"] == f"{wire}/fake-large"
    assert answer["finish_reason"] == "stop"
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (INPUT, OUTPUT)
    assert not provider.asked[-1].get("stream")


@pytest.mark.parametrize("fault", [None, "crlf", "cr", "split", "no_done", "usage_twice", "empty_choices", "after_end"])
@pytest.mark.parametrize("wire", WIRES)
async def test_a_streamed_answer_is_what_the_provider_sent(
    served: House, provider: FakeProvider, wire: str, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    events = await served.events(body(wire))
    assert text_of(events) == TEXT
    last = events[-1]
    assert last["kind"] == "run.finished"
    assert last["output"] == TEXT
    assert (last["usage"]["input_tokens"], last["usage"]["output_tokens"]) == (INPUT, OUTPUT)
    assert last["model"] == f"{wire}/fake-large"


@pytest.mark.parametrize("wire", ["openai", "mistral", "vllm"])
async def test_cached_and_reasoning_tokens_are_kept_apart(served: House, wire: str) -> None:
    usage = (await served.client.post("/completion", json=body(wire))).json()["usage"]
    assert (usage["cached_tokens"], usage["reasoning_tokens"]) == (4, 2)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("wire", WIRES)
async def test_usage_that_nobody_reported_is_unknown_and_not_zero(
    served: House, provider: FakeProvider, wire: str, streamed: bool
) -> None:
    for fault in ("usage_missing", "usage_negative"):
        provider.then(Reply(fault=fault))
        if streamed:
            assert (await served.events(body(wire)))[-1]["usage"] is None
        else:
            assert (await served.client.post("/completion", json=body(wire))).json()["usage"] is None


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("wire", WIRES)
async def test_a_tool_call_goes_there_and_its_answer_back(
    served: House, provider: FakeProvider, wire: str, streamed: bool
) -> None:
    provider.then(Reply(tool=("calculator", {"expression": "6*7"})), Reply(words=("it ", "is 42")))
    asked = body(wire, agent="react")
    if streamed:
        events = await served.events(asked)
        kinds = [event["kind"] for event in events]
        assert kinds.index("tool.started") < kinds.index("tool.finished") < kinds.index("text.delta")
        assert next(event for event in events if event["kind"] == "tool.finished")["output"] == "42"
        answer, usage = events[-1]["output"], events[-1]["usage"]
    else:
        result = (await served.client.post("/completion", json=asked)).json()
        answer, usage = result["response"], result["usage"]
    assert answer == "it is 42"
    assert usage["total_tokens"] == sum(map(sum, provider.ledger))
    assert provider.asked[-1]["messages"][-1]["role"] == "tool"
    assert "42" in provider.asked[-1]["messages"][-1]["content"]
    assert {tool["function"]["name"] for tool in provider.asked[-1]["tools"]} == {"calculator", "clock"}


@pytest.mark.parametrize("wire", ["openai", "vllm", "ollama"])
async def test_what_a_model_thinks_aloud_is_told_apart(served: House, provider: FakeProvider, wire: str) -> None:
    provider.then(Reply(reasoning="let me see", words=("yes",)))
    events = await served.events(body(wire))
    assert "".join(event["text"] for event in events if event["kind"] == "reasoning.delta") == "let me see"
    assert text_of(events) == "yes"


@pytest.mark.parametrize(
    ("wire", "limit"), [("openai", "max_completion_tokens"), ("mistral", "max_tokens"), ("vllm", "max_tokens")]
)
async def test_parameters_reach_the_provider_under_its_names(
    served: House, provider: FakeProvider, wire: str, limit: str
) -> None:
    await served.client.post("/completion", json=body(wire, temperature=0.3, max_tokens=77))
    assert (provider.asked[-1]["temperature"], provider.asked[-1][limit]) == (0.3, 77)
    await served.client.post("/completion", json=body(wire))
    assert not {"temperature", limit, "top_p"} & set(provider.asked[-1]), "what nobody set is the provider's choice"


async def test_ollama_takes_its_options(served: House, provider: FakeProvider) -> None:
    await served.client.post("/completion", json=body("ollama", temperature=0.3, max_tokens=77))
    assert provider.asked[-1]["options"] == {"temperature": 0.3, "num_predict": 77}


async def test_each_provider_gets_its_own_key_and_a_keyless_one_none(
    served: House, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-stray")
    for wire, expected in (
        ("openai", "Bearer sk-openai"),
        ("mistral", "Bearer mistral-key"),
        ("vllm", None),
        ("ollama", None),
    ):
        await served.client.post("/completion", json=body(wire))
        assert provider.headers[-1].get("authorization") == expected


async def test_mistral_refuses_by_name_what_it_does_not_take(served: House) -> None:
    refused = await served.client.post("/completion", json=body("mistral", temperature=1.5))
    assert (refused.status_code, refused.json()["param"]) == (422, "temperature")


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}


@pytest.mark.parametrize("wire", WIRES)
async def test_a_wanted_format_reaches_the_provider(served: House, provider: FakeProvider, wire: str) -> None:
    provider.then(Reply(words=('{"city": "Lyon"}',)))
    answer = await served.client.post("/completion", json=body(wire, response_format=FORMAT))
    assert answer.json()["response"] == '{"city": "Lyon"}'
    asked = provider.asked[-1]
    schema = asked["format"] if wire == "ollama" else asked["response_format"]["json_schema"]["schema"]
    assert schema == SCHEMA


async def test_the_offline_model_fills_a_schema(house: House) -> None:
    answer = await house.client.post("/completion", json={"message": "where?", "response_format": FORMAT})
    assert answer.json()["response"] == '{"city":"offline"}'


async def test_models_are_listed_by_provider_with_what_is_known(served: House, provider: FakeProvider) -> None:
    listed = (await served.client.get("/models")).json()
    by_id = {model["id"]: model for model in listed["models"]}
    assert {f"{wire}/fake-large" for wire in WIRES} <= set(by_id)
    assert by_id["openai/gpt-4o-mini"]["context_window"] == 128_000
    assert by_id["openai/gpt-4o-mini"]["price"]["input"] == "0.15"
    assert by_id["openai/fake-large"]["price"] is None
    assert listed["default_model"] == "openai/gpt-4o-mini"
    one = await served.client.get("/models/openai%2Fgpt-4o-mini")
    assert one.json() == by_id["openai/gpt-4o-mini"]


async def test_a_bare_name_works_where_one_provider_has_it(served: House, provider: FakeProvider) -> None:
    several = await served.client.post("/completion", json={"message": "x", "model": "fake-large"})
    assert several.status_code == 422
    assert several.json()["code"] == "ambiguous_model"
    assert (await served.client.post("/completion", json={"message": "x", "model": "gpt-4o"})).json()[
        "model"
    ] == "openai/gpt-4o"
    colon = await served.client.post("/completion", json={"message": "x", "model": "ollama:llama3.2:3b"})
    assert colon.json()["model"] == "ollama/llama3.2:3b"


async def test_a_provider_that_is_down_is_listed_with_the_reason(
    open_with: Opener, settings: Settings, unused_address: str
) -> None:
    down = ProviderSettings(discover_local=False, openai_base_url=unused_address, ollama_base_url=unused_address)
    house = await open_with(settings.model_copy(update={"providers": down}))
    listed = (await house.client.get("/models")).json()
    states = {provider["name"]: provider["available"] for provider in listed["providers"]}
    assert states == {"openai": False, "ollama": False, "offline": True}
    assert "cannot be reached" in listed["providers"][0]["unavailable_reason"]


async def test_nobody_steps_in_for_a_configured_provider_that_is_down(
    open_with: Opener, settings: Settings, unused_address: str
) -> None:
    down = ProviderSettings(discover_local=False, ollama_base_url=unused_address)
    house = await open_with(settings.model_copy(update={"providers": down}))
    answer = await house.client.post("/completion", json={"message": "x"})
    assert answer.status_code == 503
    assert "ollama" in answer.json()["detail"]


async def test_production_without_a_model_says_what_to_set(open_with: Opener, settings: Settings) -> None:
    server = settings.server.model_copy(update={"environment": "production"})
    house = await open_with(settings.model_copy(update={"server": server, "providers": ProviderSettings()}))
    answer = await house.client.post("/completion", json={"message": "x"})
    assert answer.status_code == 503
    assert "OPENAI_API_KEY" in answer.json()["detail"]
    assert answer.json()["code"] == "no_model"


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_fallback_answers_before_the_first_byte_and_is_named(
    open_with: Opener, settings: Settings, provider: FakeProvider, streamed: bool
) -> None:
    chain = {"openai/fake-large": ("mistral/fake-large",)}
    house = await open_with(reaching(settings, provider, model_fallbacks=chain, max_retries=0))
    provider.then(Reply(status=500), Reply(words=("rescued",)))
    if streamed:
        last = (await house.events(body("openai")))[-1]
        text, model = last["output"], last["model"]
    else:
        answer = await house.client.post("/completion", json=body("openai"))
        text, model = answer.json()["response"], answer.headers["x-model"]
    assert (text, model) == ("rescued", "mistral/fake-large")


async def test_a_client_that_leaves_closes_the_providers_connection(served: House, provider: FakeProvider) -> None:
    for streamed in (True, False):
        provider.abort_seen.clear()
        provider.begun.clear()
        provider.then(Reply(fault="hang_between" if streamed else "hang_before"))
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:

                async def ask(streamed: bool = streamed) -> None:
                    path = "/completion/stream" if streamed else "/completion"
                    async with served.client.stream("POST", path, json=body("openai")) as response:
                        await response.aread()

                group.start_soon(ask)
                await provider.begun.wait()
                group.cancel_scope.cancel()
            with anyio.fail_after(1):
                await provider.abort_seen.wait()
    assert provider.open == 0


async def test_a_hundred_streams_of_two_hundred_pieces_lose_nothing(served: House, provider: FakeProvider) -> None:
    words = tuple(f"{number} " for number in range(200))
    provider.default = Reply(words=words)
    answers: list[str] = []

    async def ask() -> None:
        events = await served.events(body("openai"))
        assert [e["text"] for e in events if e["kind"] == "text.delta" and not e["done"]] == list(words)
        answers.append(events[-1]["output"])

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(ask)
    assert answers == ["".join(words)] * 100


SYNC_AGENT = """
from langgraph.graph import END, START, MessagesState, StateGraph


def build_graph(context):
    def node(state: MessagesState) -> dict:
        return {"messages": [context.llm.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph
"""


@pytest.mark.parametrize("model", ["openai/m", "ollama/m", "offline/rules"])
async def test_a_graph_with_plain_functions_streams_like_any_other(
    open_with: Opener, settings: Settings, provider: FakeProvider, tmp_path: Path, model: str
) -> None:
    folder = tmp_path / "plugins" / "plain"
    folder.mkdir(parents=True)
    (folder / "graph.py").write_text(SYNC_AGENT)
    (folder / "config.yaml").write_text("name: Plain\n")
    agents = settings.agents.model_copy(update={"plugins_dir": tmp_path / "plugins"})
    house = await open_with(reaching(settings.model_copy(update={"agents": agents}), provider))
    events = await house.events({"message": "Salut", "model": model, "agent": "plain"})
    assert events[-1]["kind"] == "run.finished"
    assert sum(event["kind"] == "text.delta" for event in events) > 5
    assert text_of(events) == events[-1]["output"]
    assert events[-1]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("wire", WIRES)
async def test_one_connection_serves_one_call_after_another(
    open_with: Opener, settings: Settings, provider: FakeProvider, wire: str, streamed: bool
) -> None:
    house = await open_with(reaching(settings, provider))
    provider.connections.clear()
    for _ in range(10):
        if streamed:
            assert text_of(await house.events(body(wire))) == TEXT
        else:
            assert (await house.client.post("/completion", json=body(wire))).status_code == 200
    assert len(provider.connections) == 1
