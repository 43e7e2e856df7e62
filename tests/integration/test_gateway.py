"""The house as a gateway: pools, cooldown and stand-ins, over real wires."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import orjson
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel, SecretStr

from config.settings import CompatibleProvider, ProviderSettings, Settings, SettingsError
from domain.errors import InvalidRequest, ModelNotFound, UpstreamFailure
from services.llm_service import LLMService, open_llm_service
from services.model_router import ModelRouter
from tests.fakes.house import House, text_of
from tests.fakes.providers import TEXT, FakeProvider, Reply

pytestmark = pytest.mark.anyio

Opener = Callable[[Settings], Awaitable[House]]
TOO_LONG = Reply(status=400, error={"message": "maximum context length", "code": "context_length_exceeded"})
DOORS = pytest.mark.parametrize("door", ["whole", "streamed", "v1", "v1 streamed"])


def pool(*models: str, **timeouts: float) -> dict[str, Any]:
    return {"chat": {"deployments": [{"model": model, "timeout": timeouts.get(model[:6])} for model in models]}}


def gateway(settings: Settings, provider: FakeProvider, **more: Any) -> Settings:
    """`settings` with every provider at the fake's address, and nothing tried twice."""
    asked = {
        "discover_local": False,
        "openai_api_key": SecretStr("sk-openai"),
        "openai_base_url": f"{provider.url}/v1",
        "mistral_base_url": f"{provider.url}/mistral/v1",
        "ollama_base_url": provider.url,
        "compatible": {"vllm": CompatibleProvider(base_url=f"{provider.url}/vllm/v1")},
        "max_retries": 0,
        **more,
    }
    return settings.model_copy(update={"providers": ProviderSettings.model_validate(asked)})


def in_order(house: House) -> ModelRouter:
    """The house's router, which from now on draws the first of those that are well."""
    router = house.services.llm.router
    router.draw = lambda: 0.0
    return router


async def ask(house: House, *, door: str, model: str | None = "pool/chat", **more: Any) -> tuple[str, str, int]:
    """The words, what served them, and the status."""
    if door.startswith("v1"):
        return await ask_v1(house, streamed=door == "v1 streamed", model=model, **more)
    body = {"message": "Salut", "model": model, **more}
    if door == "streamed":
        events = await house.events(body)
        last = events[-1]
        status = 200 if last["kind"] == "run.finished" else 500
        return text_of(events), last.get("model", ""), status
    answer = await house.client.post("/completion", json=body)
    return answer.json().get("response", ""), answer.headers.get("x-model", ""), answer.status_code


async def ask_v1(house: House, *, streamed: bool, **more: Any) -> tuple[str, str, int]:
    """The same, as OpenAI's clients ask."""
    body = {"messages": [{"role": "user", "content": "Salut"}], "stream": streamed, **more}
    answer = await house.client.post("/v1/chat/completions", json=body)
    served, status = answer.headers.get("x-model", ""), answer.status_code
    if status != 200:
        return "", served, status
    if not streamed:
        return answer.json()["choices"][0]["message"]["content"], served, status
    frames = [frame.removeprefix("data: ") for frame in answer.text.split("\n\n") if frame.startswith("data: {")]
    events = [orjson.loads(frame) for frame in frames]
    if any("error" in event for event in events):
        status = 500
    words = [event["choices"][0]["delta"].get("content") or "" for event in events if event.get("choices")]
    return "".join(words), served, status


async def test_calls_are_shared_by_weight(open_with: Opener, settings: Settings, provider: FakeProvider) -> None:
    deployments = [{"model": "openai/m", "weight": 3}, {"model": "mistral/m"}]
    house = await open_with(gateway(settings, provider, model_pools={"chat": {"deployments": deployments}}))
    llm = house.services.llm.get_llm("pool/chat")
    served = Counter([(await llm.ainvoke("x")).response_metadata["routeur_model"] for _ in range(200)])
    assert served.total() == provider.calls == 200
    assert 110 < served["openai/m"] < 190  # 150 and six times the spread


@DOORS
async def test_a_deployment_that_fails_is_replaced_and_the_answer_names_who_served(
    open_with: Opener, settings: Settings, provider: FakeProvider, caplog: pytest.LogCaptureFixture, door: str
) -> None:
    house = await open_with(gateway(settings, provider, model_pools=pool("openai/m", "mistral/m", "ollama/m")))
    in_order(house)
    provider.then(Reply(status=500), Reply(status=404), Reply(words=("rescued",)))
    with caplog.at_level(logging.WARNING):
        assert await ask(house, door=door) == ("rescued", "ollama/m", 200)
    ollama = "/v1/chat/completions" if door.startswith("v1") else "/api/chat"
    assert provider.paths[-3:] == ["/v1/chat/completions", "/mistral/v1/chat/completions", ollama]
    told = [(one.__dict__["model"], one.__dict__["next"]) for one in caplog.records if hasattr(one, "next")]
    assert told == [("openai/m", "mistral/m"), ("mistral/m", "ollama/m")]
    metrics = house.services.metrics.render().decode()
    assert 'routeur_model_calls_replaced_total{kind="down",model="openai/m"} 1.0' in metrics
    assert 'routeur_model_calls_replaced_total{kind="not_found",model="mistral/m"} 1.0' in metrics


async def test_a_model_that_keeps_failing_is_left_alone_and_comes_back(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    house = await open_with(gateway(settings, provider, model_pools=pool("openai/m", "mistral/m"), cooldown=30))
    router = in_order(house)
    now = [0.0]
    router.clock = lambda: now[0]
    for _ in range(3):
        provider.then(Reply(status=503), Reply())
        assert (await ask(house, door="whole"))[1] == "mistral/m"
    assert provider.calls == 6
    assert "routeur_models_cooling 1.0" in house.services.metrics.render().decode()
    assert (await ask(house, door="whole"))[1] == "mistral/m"
    assert provider.calls == 7, "openai is not asked any more"
    now[0] = 30
    assert (await ask(house, door="whole"))[1] == "openai/m"
    assert (await ask(house, door="streamed"))[1] == "openai/m"


async def test_a_busy_provider_that_says_when_is_set_aside_at_once(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    house = await open_with(gateway(settings, provider, model_pools=pool("openai/m", "mistral/m")))
    in_order(house)
    provider.then(Reply(status=429, headers={"retry-after": "120"}))
    assert [(await ask(house, door="whole"))[1] for _ in range(2)] == ["mistral/m", "mistral/m"]
    assert provider.calls == 3


@DOORS
@pytest.mark.parametrize(
    ("reply", "served"),
    [
        (Reply(status=500), "mistral/down"),
        (Reply(status=429), "mistral/busy"),
        (TOO_LONG, "mistral/long"),
    ],
)
async def test_fallbacks_go_by_the_kind_of_error(
    open_with: Opener, settings: Settings, provider: FakeProvider, reply: Reply, served: str, door: str
) -> None:
    table = {"down": ["mistral/down"], "rate_limited": ["mistral/busy"], "context_length": ["mistral/long"]}
    house = await open_with(gateway(settings, provider, model_fallbacks={"openai/m": table}))
    provider.then(reply)
    assert await ask(house, door=door, model="openai/m") == (TEXT, served, 200)


@DOORS
async def test_a_conversation_too_long_for_a_deployment_goes_to_a_longer_model_at_once(
    open_with: Opener, settings: Settings, provider: FakeProvider, door: str
) -> None:
    table = {"pool/chat": {"down": ["ollama/m"], "context_length": ["vllm/long"]}}
    pools = pool("openai/m", "mistral/m")
    house = await open_with(gateway(settings, provider, model_pools=pools, model_fallbacks=table))
    in_order(house)
    provider.then(TOO_LONG)
    assert await ask(house, door=door) == (TEXT, "vllm/long", 200)
    assert provider.calls == 2, "mistral/m is not asked: it is the same model"


async def test_without_a_longer_model_it_is_the_callers_to_mend(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    fallbacks = {"openai/m": ["mistral/m"]}
    house = await open_with(gateway(settings, provider, model_fallbacks=fallbacks))
    provider.then(TOO_LONG)
    answer = await house.client.post("/completion", json={"message": "x", "model": "openai/m"})
    assert (answer.status_code, answer.json()["code"]) == (422, "context_length_exceeded")
    assert provider.calls == 1


@DOORS
async def test_a_deployment_that_hangs_is_replaced_after_its_own_timeout(
    open_with: Opener, settings: Settings, provider: FakeProvider, door: str
) -> None:
    """The provider's own deadlines are a minute and ten."""
    house = await open_with(gateway(settings, provider, model_pools=pool("openai/m", "mistral/m", openai=0.2)))
    in_order(house)
    provider.then(Reply(fault="hang_before"))
    with anyio.fail_after(10):
        assert await ask(house, door=door) == (TEXT, "mistral/m", 200)
        await provider.abort_seen.wait()


@DOORS
async def test_a_providers_retries_do_not_prolong_a_deployments_timeout(
    open_with: Opener, settings: Settings, provider: FakeProvider, door: str
) -> None:
    pools, fallbacks = pool("openai/m", openai=0.2), {"pool/chat": ["mistral/m"]}
    house = await open_with(gateway(settings, provider, model_pools=pools, model_fallbacks=fallbacks, max_retries=2))
    provider.then(Reply(status=503, headers={"retry-after": "9"}))
    with anyio.fail_after(6):
        assert await ask(house, door=door) == (TEXT, "mistral/m", 200)


@DOORS
@pytest.mark.parametrize("status", [429, 503])
async def test_while_another_deployment_is_well_nobody_waits_for_a_retry(
    open_with: Opener, settings: Settings, provider: FakeProvider, status: int, door: str
) -> None:
    house = await open_with(gateway(settings, provider, model_pools=pool("openai/m", "mistral/m"), max_retries=2))
    in_order(house)
    provider.then(
        Reply(status=status, headers={"retry-after": "9"}), Reply(status=503, headers={"retry-after-ms": "5"})
    )
    with anyio.fail_after(6):
        assert await ask(house, door=door) == (TEXT, "mistral/m", 200)
    assert provider.calls == 3, "the last one is tried again"


@DOORS
async def test_an_answer_that_has_begun_in_time_may_take_longer_than_its_timeout(
    open_with: Opener, settings: Settings, provider: FakeProvider, door: str
) -> None:
    pools = pool("openai/m", "mistral/m", openai=0.3)
    house = await open_with(gateway(settings, provider, model_pools=pools))
    in_order(house)
    provider.then(Reply(words=("slow ", "but ", "sure"), pause=0.15 if "streamed" in door else 0.0))
    assert await ask(house, door=door) == ("slow but sure", "openai/m", 200)


@DOORS
async def test_a_call_that_is_cancelled_is_no_failure_and_its_trial_is_another_callers(
    open_with: Opener, settings: Settings, provider: FakeProvider, door: str
) -> None:
    pools = pool("openai/m", "mistral/m")
    house = await open_with(gateway(settings, provider, model_pools=pools, failures_before_cooldown=1, cooldown=30))
    router = in_order(house)
    now = [0.0]
    router.clock = lambda: now[0]
    provider.then(Reply(status=500))
    assert (await ask(house, door=door))[1] == "mistral/m"
    now[0] = 30
    provider.begun.clear()
    provider.then(Reply(fault="hang_before"))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: ask(house, door=door))
            await provider.begun.wait()
            assert (await ask(house, door=door))[1] == "mistral/m", "one at a time"
            group.cancel_scope.cancel()
        await provider.abort_seen.wait()
    assert router.cooling() == 0
    now[0] = 60
    assert (await ask(house, door=door))[1] == "openai/m"


async def test_nothing_is_replaced_after_the_first_word(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    pools = pool("openai/m", "mistral/m")
    house = await open_with(gateway(settings, provider, model_pools=pools, model_fallbacks={"pool/chat": ["ollama/m"]}))
    in_order(house)
    provider.then(Reply(fault="cut"))
    text, _, status = await ask(house, door="streamed")
    assert status == 500
    assert text
    assert TEXT.startswith(text)
    assert provider.calls == 1


async def test_when_everybody_is_down_the_last_error_is_told_and_all_are_asked_again(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    house = await open_with(
        gateway(settings, provider, model_pools=pool("openai/m", "mistral/m"), failures_before_cooldown=1)
    )
    in_order(house)
    provider.default = Reply(status=500)
    for calls in (2, 4):
        answer = await house.client.post("/completion", json={"message": "x", "model": "pool/chat"})
        assert (answer.status_code, answer.json()["code"]) == (502, "upstream_failure")
        assert provider.calls == calls


async def test_a_pool_is_listed_with_what_holds_for_all_of_it(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    pools = {
        "chat": {"deployments": [{"model": "openai/gpt-4o-mini"}, {"model": "openai/gpt-4"}]},
        "same": {"deployments": [{"model": "openai/gpt-4o"}]},
    }
    house = await open_with(gateway(settings, provider, model_pools=pools, default_model="pool/chat"))
    listed = {one["id"]: one for one in (await house.client.get("/models")).json()["models"]}
    chat = listed["pool/chat"]
    assert (chat["provider"], chat["name"], chat["available"], chat["default"]) == ("pool", "chat", True, True)
    assert "openai/gpt-4o-mini" in chat["description"]
    assert "openai/gpt-4" in chat["description"]
    assert chat["context_window"] == 8192
    assert chat["price"] is None, "they cost differently"
    assert (chat["abilities"]["tools"], chat["abilities"]["vision"]) == (True, False)
    assert listed["pool/same"]["price"] is not None
    assert (await house.client.get("/models/pool/chat")).json() == chat
    assert (await house.client.get("/models/pool/nothing")).status_code == 404


async def test_a_pool_may_be_the_default(open_with: Opener, settings: Settings, provider: FakeProvider) -> None:
    chosen = gateway(settings, provider, model_pools=pool("mistral/m"), default_model="pool/chat")
    house = await open_with(chosen)
    assert (await ask(house, door="whole", model=None))[1:] == ("mistral/m", 200)
    assert house.services.llm.default_model_id == "pool/chat"


async def test_a_start_with_an_unknown_deployment_is_refused(settings: Settings, provider: FakeProvider) -> None:
    chosen = gateway(settings, provider, model_pools=pool("openai/m", "azure-eu/m"))
    with pytest.raises(SettingsError, match=r"MODEL_POOLS.*azure-eu/m"):
        async with open_llm_service(chosen):
            pass


async def test_a_key_for_a_pool_reaches_its_members_through_it_only(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    house = await open_with(gateway(settings, provider, model_pools=pool("mistral/m")))
    made = await house.client.post("/auth/keys", json={"name": "k", "models": ["pool/chat"]})
    assert made.status_code == 201, made.text
    headers = {"authorization": f"Bearer {made.json()['key']}"}
    for model, status in (("pool/chat", 200), ("mistral/m", 403)):
        answer = await house.anyone.post("/completion", json={"message": "x", "model": model}, headers=headers)
        assert answer.status_code == status, answer.text


# -- pools of several vendors, in graphs --


@tool
def lookup(place: str) -> str:
    """Where a place is."""
    return place


class Place(BaseModel):
    """A place."""

    name: str


ASK_BY_TOOL = ("mistral/m", "vllm/m")  # how LangChain's classes of these get structured answers
VENDORS = ("openai/m", "mistral/m", "ollama/m", "vllm/m", "offline/rules")


@pytest.fixture
async def llm(settings: Settings, provider: FakeProvider) -> Any:
    """A factory with one pool for every pair of vendors; the first of a pair is asked first."""
    pairs = {
        f"{first[:3]}-{second[:3]}": {"deployments": [{"model": first}, {"model": second}]}
        for first in VENDORS
        for second in VENDORS
        if first != second
    }
    async with open_llm_service(gateway(settings, provider, model_pools=pairs)) as opened:
        opened.router.draw = lambda: 0.0
        yield opened


def pairs() -> Iterator[tuple[str, str]]:
    yield from ((first, second) for first in VENDORS[:4] for second in VENDORS if first != second)


@pytest.mark.parametrize(("first", "second"), pairs())
async def test_tools_that_were_bound_to_one_vendor_reach_another(
    llm: LLMService, provider: FakeProvider, first: str, second: str
) -> None:
    model = llm.get_llm(f"pool/{first[:3]}-{second[:3]}").bind_tools([lookup], tool_choice="lookup")
    provider.then(Reply(status=500), Reply(tool=("lookup", {"place": "Paris"})))
    answer = await model.ainvoke([HumanMessage('call lookup with {"place": "Paris"}')])
    assert isinstance(answer, AIMessage)
    assert [(call["name"], list(call["args"])) for call in answer.tool_calls] == [("lookup", ["place"])]
    assert answer.response_metadata["routeur_model"] == second
    if second != "offline/rules":
        asked = provider.asked[-1]
        assert [one["function"]["name"] for one in asked["tools"]] == ["lookup"]
        if second == "ollama/m":
            assert "tool_choice" not in asked
        else:
            assert asked["tool_choice"] == {"type": "function", "function": {"name": "lookup"}}


@pytest.mark.parametrize(("first", "second"), pairs())
async def test_some_tool_is_forced_in_each_vendors_words(
    llm: LLMService, provider: FakeProvider, first: str, second: str
) -> None:
    model = llm.get_llm(f"pool/{first[:3]}-{second[:3]}").bind_tools([lookup], tool_choice="any")
    provider.then(Reply(status=500), Reply(tool=("lookup", {"place": "Paris"})))
    answer = await model.ainvoke([HumanMessage("anything")])
    assert [call["name"] for call in answer.tool_calls] == ["lookup"]
    if second != "offline/rules":
        expected = {"mistral/m": "any", "ollama/m": None}.get(second, "required")
        assert provider.asked[-1].get("tool_choice") == expected


@pytest.mark.parametrize(("first", "second"), pairs())
async def test_a_structured_answer_of_another_vendor_is_read_the_same(
    llm: LLMService, provider: FakeProvider, first: str, second: str
) -> None:
    model = llm.get_llm(f"pool/{first[:3]}-{second[:3]}").with_structured_output(Place)
    reply = Reply(words=('{"name": ', '"Paris"}'))
    if first in ASK_BY_TOOL:
        reply = Reply(tool=("Place", {"name": "Paris"}))
    provider.then(Reply(status=500), reply)
    answer = await model.ainvoke([HumanMessage("where?")])
    assert isinstance(answer, Place)
    if second == "offline/rules":
        return
    assert answer.name == "Paris"
    asked = provider.asked[-1]
    if first in ASK_BY_TOOL:
        assert [one["function"]["name"] for one in asked["tools"]] == ["Place"]
    elif second == "ollama/m":
        assert "name" in asked["format"]["properties"]
    else:
        assert asked["response_format"]["type"] == "json_schema"
        assert "name" in asked["response_format"]["json_schema"]["schema"]["properties"]


@pytest.mark.parametrize("door", ["whole", "streamed"])
async def test_a_graph_with_tools_runs_on_a_pool_of_several_vendors(
    open_with: Opener, settings: Settings, provider: FakeProvider, door: str
) -> None:
    house = await open_with(gateway(settings, provider, model_pools=pool("openai/m", "ollama/m")))
    in_order(house)
    provider.then(
        Reply(status=500), Reply(tool=("calculator", {"expression": "6*7"})), Reply(status=500), Reply(words=("42",))
    )
    assert await ask(house, door=door, agent="react") == ("42", "ollama/m", 200)


# -- who cannot take the parameters --


@DOORS
async def test_a_member_that_cannot_take_the_parameters_is_passed_over(
    open_with: Opener, settings: Settings, provider: FakeProvider, caplog: pytest.LogCaptureFixture, door: str
) -> None:
    house = await open_with(gateway(settings, provider, model_pools=pool("mistral/m", "openai/m")))
    in_order(house)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert await ask(house, door=door, temperature=1.5) == (TEXT, "openai/m", 200)
    passed = [one.__dict__["model"] for one in caplog.records if "passed over" in one.message]
    assert passed == ["mistral/m"] * (2 if door.startswith("v1") else 1), "agents say it once for these parameters"
    assert (await ask(house, door=door, temperature=0.5))[1] == "mistral/m"


async def test_when_only_such_are_left_the_first_error_stands(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    house = await open_with(gateway(settings, provider, model_fallbacks={"openai/m": ["mistral/m"]}))
    provider.then(Reply(status=500))
    llm = house.services.llm.get_llm("openai/m", temperature=1.5)
    with pytest.raises(UpstreamFailure, match="openai"):
        await llm.ainvoke("x")
    assert provider.calls == 1


async def test_a_pool_that_cannot_take_the_parameters_at_all_says_which(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    house = await open_with(gateway(settings, provider, model_pools=pool("mistral/m", "mistral/n")))
    answer = await house.client.post("/completion", json={"message": "x", "model": "pool/chat", "temperature": 1.5})
    assert answer.status_code == 422
    assert "temperature" in answer.text
    with pytest.raises(InvalidRequest):
        house.services.llm.get_llm("pool/chat", temperature=1.5)
    with pytest.raises(ModelNotFound, match="pool/chat"):
        house.services.llm.get_llm("pool/nothing")
