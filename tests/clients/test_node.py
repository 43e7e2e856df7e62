"""The official JavaScript clients: the `openai` package, and Vercel's AI SDK. `node/*.mjs` say what they do."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients import node_packages
from tests.clients.conftest import Door, Upstream
from tests.fakes.providers import INPUT, OUTPUT, TEXT, Reply

pytestmark = pytest.mark.e2e

Run = Callable[..., Any]


def _runner(script: str, door: Door) -> Run:
    if reason := node_packages.why_not():
        if node_packages.required():
            pytest.fail(f"{node_packages.REQUIRED} is set: {reason}")
        pytest.skip(reason)

    def run(scenario: str, **more: str) -> Any:
        return node_packages.run(script, scenario, ROUTEUR_URL=door.url, ROUTEUR_KEY=door.key, **more)

    return run


@pytest.fixture
def openai(door: Door) -> Run:
    """Runs a scenario of openai.mjs."""
    return _runner("openai.mjs", door)


@pytest.fixture
def vercel(door: Door) -> Run:
    """Runs a scenario of vercel_ai.mjs."""
    return _runner("vercel_ai.mjs", door)


def test_the_lock_names_no_other_registry_than_the_public_one() -> None:
    lock = json.loads((node_packages.FOLDER / "package-lock.json").read_text())
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert len(packages) > 3
    for name, one in packages.items():
        assert one["resolved"].startswith("https://registry.npmjs.org/"), name
        assert one["integrity"].startswith("sha512-"), name


# -- openai --


def test_openai_reads_an_answer(openai: Run) -> None:
    seen = openai("chat")
    assert "You said: Hello, Node!" in seen["text"]
    assert (seen["finish"], seen["model"]) == ("stop", "offline/rules")
    usage = seen["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 10
    assert seen["headers"]["x-model"] == "offline/rules"
    assert seen["headers"]["x-run-id"]


def test_openai_reads_a_stream_and_what_it_cost(openai: Run) -> None:
    whole, streamed = openai("chat"), openai("stream")
    assert streamed["text"] == whole["text"]
    assert streamed["chunks"] > 10
    assert (streamed["finish"], streamed["model"]) == ("stop", "offline/rules")
    assert streamed["usage"] == whole["usage"]


def test_openais_stream_helper_puts_the_answer_together(openai: Run) -> None:
    seen = openai("streamHelper")
    assert seen["heard"] == seen["text"]
    assert seen["usage"]["total_tokens"] > 10


def test_openai_calls_a_tool_and_hears_of_its_result(openai: Run) -> None:
    seen = openai("tools")
    assert seen["finish"] == "tool_calls"
    assert (seen["call"]["name"], json.loads(seen["call"]["arguments"])) == ("get_weather", {"city": "Paris"})
    assert "get_weather answered: sunny" in seen["answer"]
    [call] = seen["streamed"]["calls"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})
    assert call["id"]
    assert seen["streamed"]["finish"] == "tool_calls"


def test_openais_tool_runner_runs_to_the_end(openai: Run) -> None:
    seen = openai("runTools")
    assert "get_weather answered: rain in Oslo" in seen["answer"]
    assert seen["messages"] == ["user", "assistant", "tool", "assistant"]


def test_openai_parses_structured_output(openai: Run) -> None:
    assert openai("parse") == {"name": "Ada", "age": 36}


def test_openai_reads_responses_and_answers_their_calls(openai: Run) -> None:
    seen = openai("responses")
    assert "You said: Hello, Node!" in seen["text"]
    assert seen["streamed"] == seen["text"]
    assert (seen["kinds"][0], seen["kinds"][-1]) == ("response.created", "response.completed")
    assert seen["usage"]["total_tokens"] == seen["usage"]["input_tokens"] + seen["usage"]["output_tokens"] > 10
    assert (seen["call"]["name"], json.loads(seen["call"]["arguments"])) == ("get_weather", {"city": "Rome"})
    assert "get_weather answered: hot" in seen["answer"]
    assert (seen["error"]["class"], seen["error"]["code"]) == ("NotFoundError", "model_not_found")


def test_openai_raises_the_class_that_belongs_to_each_failure(openai: Run) -> None:
    seen = openai("errors")
    classes = {name: (error["class"], error["status"]) for name, error in seen.items()}
    assert classes == {
        "key": ("AuthenticationError", 401),
        "model": ("NotFoundError", 404),
        "retrieve": ("NotFoundError", 404),
        "value": ("BadRequestError", 400),
        "unsupported": ("BadRequestError", 400),
    }
    assert seen["model"]["code"] == "model_not_found"
    assert seen["value"]["param"] == "temperature"
    assert (seen["unsupported"]["code"], seen["unsupported"]["param"]) == ("unsupported_parameter", "logprobs")
    assert all(error["type"] and error["message"] for error in seen.values())


def test_openai_tells_a_busy_provider_from_a_key_of_ours_that_it_refuses(openai: Run, upstream: Upstream) -> None:
    upstream.fake.then(Reply(status=429, headers={"retry-after": "120"}), Reply(status=401))
    seen = openai("upstreamErrors", ROUTEUR_MODEL="fake/fake-large")
    assert (seen["busy"]["class"], seen["busy"]["status"]) == ("RateLimitError", 429)
    assert (seen["refused"]["class"], seen["refused"]["status"]) == ("InternalServerError", 502)
    assert "sk-secret" not in json.dumps(seen)


def test_openai_lists_models_and_agents_and_finds_one_whose_id_has_a_slash(openai: Run) -> None:
    seen = openai("models")
    assert {"offline/rules", "offline/hash", "agent/simple", "agent/react", "fake/fake-large"} <= set(seen["ids"])
    assert seen["model"]["id"] == "offline/rules"
    assert (seen["agent"]["id"], seen["agent"]["object"]) == ("agent/react", "model")


def test_openai_decodes_embeddings(openai: Run) -> None:
    seen = openai("embeddings")
    assert seen["sizes"] == [256, 256, 256]
    assert seen["alike"]
    assert seen["furthest"] < 1e-6
    assert seen["small"] == 8
    assert seen["usage"]["total_tokens"] == seen["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize("fault", ["cut", "error_inside"])
def test_openai_raises_what_happens_in_the_middle_of_a_stream(openai: Run, upstream: Upstream, fault: Any) -> None:
    upstream.fake.then(Reply(fault=fault))
    seen = openai("brokenStream", ROUTEUR_MODEL="fake/fake-large")
    assert seen["text"]
    assert TEXT.startswith(seen["text"])
    assert seen["error"]["isAPIError"]
    assert seen["error"]["type"] == "api_error"
    assert "sk-secret" not in json.dumps(seen)


def test_openai_reads_a_providers_answer_as_it_came(openai: Run, upstream: Upstream) -> None:
    seen = openai("stream", ROUTEUR_MODEL="fake/fake-large")
    assert seen["text"] == TEXT
    assert (seen["usage"]["prompt_tokens"], seen["usage"]["completion_tokens"]) == (INPUT, OUTPUT)


def test_openais_abort_reaches_the_provider(openai: Run, upstream: Upstream) -> None:
    upstream.fake.then(Reply(fault="hang_between"))
    seen = openai("abort", ROUTEUR_MODEL="fake/fake-large")
    assert seen == {"text": "Bon", "refused": True}
    assert upstream.aborted()


def test_openai_streams_an_agent(openai: Run) -> None:
    seen = openai("stream", ROUTEUR_MODEL="agent/react")
    assert "You said: Hello, Node!" in seen["text"]
    assert (seen["model"], seen["finish"]) == ("agent/react@offline/rules", "stop")
    assert seen["usage"]["total_tokens"] > 10


# -- Vercel's AI SDK --


def test_vercel_reads_an_answer(vercel: Run) -> None:
    seen = vercel("generate")
    assert "You said: Hello, Vercel!" in seen["text"]
    assert (seen["finishReason"], seen["model"]) == ("stop", "offline/rules")
    assert seen["usage"]["totalTokens"] == seen["usage"]["inputTokens"] + seen["usage"]["outputTokens"] > 10


def test_vercel_reads_a_stream_and_what_it_cost(vercel: Run) -> None:
    seen = vercel("stream")
    assert "You said: Hello, Vercel!" in seen["text"]
    assert seen["pieces"] > 10
    assert seen["finishReason"] == "stop"
    assert seen["usage"]["totalTokens"] > 10


def test_vercel_calls_tools_step_by_step(vercel: Run) -> None:
    seen = vercel("tools")
    assert seen["steps"] == 2
    assert seen["calls"] == [{"toolName": "get_weather", "input": {"city": "Lima"}}]
    assert "get_weather answered: snow in Lima" in seen["text"]
    assert seen["streamed"]["text"] == seen["text"]
    assert {"tool-call", "tool-result", "text-delta", "finish"} <= set(seen["streamed"]["kinds"])
    assert seen["forced"] == ["get_weather"]


def test_vercel_fills_an_object(vercel: Run) -> None:
    assert vercel("object") == {"whole": {"name": "Grace", "age": 85}, "streamed": {"name": "Grace", "age": 85}}


def test_vercel_embeds(vercel: Run) -> None:
    seen = vercel("embeddings")
    assert seen["sizes"] == [256, 256]
    assert seen["usage"]["tokens"] == 4


def test_vercel_knows_the_status_of_a_failure(vercel: Run) -> None:
    seen = vercel("errors")
    assert {name: (error["isAPICallError"], error["status"]) for name, error in seen.items()} == {
        "model": (True, 404),
        "value": (True, 400),
    }
    assert "offline/nothing" in seen["model"]["message"]


def test_vercel_is_told_of_an_error_in_the_middle_of_a_stream(vercel: Run, upstream: Upstream) -> None:
    upstream.fake.then(Reply(fault="cut"))
    seen = vercel("brokenStream", ROUTEUR_MODEL="fake/fake-large")
    assert seen["text"]
    assert TEXT.startswith(seen["text"])
    assert seen["error"]["message"]


def test_vercels_abort_reaches_the_provider(vercel: Run, upstream: Upstream) -> None:
    upstream.fake.then(Reply(fault="hang_between"))
    assert "abort" in vercel("abort", ROUTEUR_MODEL="fake/fake-large")["kinds"]
    assert upstream.aborted()


def test_vercel_streams_an_agent(vercel: Run) -> None:
    seen = vercel("stream", ROUTEUR_MODEL="agent/simple")
    assert "You said: Hello, Vercel!" in seen["text"]
    assert seen["usage"]["totalTokens"] > 10
