"""What goes wrong in chat completions: the caller's mistakes, the provider's faults, and what OpenAI's client hears."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import openai
import pytest
from openai import AsyncOpenAI

from config.settings import AgentSettings, Settings
from tests.fakes.house import House, open_house
from tests.fakes.openai_door import (
    VENDED,
    error_in,
    error_of,
    frames_of,
    post,
    reaching,
    says,
    sdk,
    words_of,
)
from tests.fakes.providers import TEXT, FakeProvider, Reply

pytestmark = pytest.mark.anyio
Opener = Callable[[Settings], Awaitable[House]]
LIMIT = 0.3  # seconds of each of the provider's deadlines
SECRET_WORDS = ("sk-secret", "was refused", "overloaded", "welcome to the proxy", "gone-fishing")


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    limits = {"first_token_timeout": LIMIT, "idle_timeout": LIMIT, "total_timeout": LIMIT * 2}
    async with open_house(reaching(shared_settings, shared_provider, **limits)) as house:
        yield house


@pytest.fixture
async def client(served: House) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(served) as made:
        yield made


class Ended:
    """How a call ended, in one shape for both doors."""

    def __init__(self, status: int, error: dict[str, Any] | None, text: str, raw: str, headers: Any) -> None:
        self.status = status
        self.error = error
        self.text = text
        self.raw = raw
        self.headers = headers

    @property
    def code(self) -> str | None:
        return self.error["code"] if self.error else None


async def outcome(house: House, model: str, *, stream: bool, **more: Any) -> Ended:
    """Ask; the answer is checked to be well formed, and to hold no word of the provider's failure."""
    with anyio.fail_after(LIMIT * 2 + 5):
        answer = await post(house, {"model": model, "messages": says(), "stream": stream, **more})
    assert not [word for word in SECRET_WORDS if word in answer.text], answer.text
    if answer.status_code != 200:
        return Ended(answer.status_code, error_of(answer), "", answer.text, answer.headers)
    if not stream:
        return Ended(200, None, answer.json()["choices"][0]["message"]["content"], answer.text, answer.headers)
    frames = frames_of(answer.content)
    failed = [one for one in frames if isinstance(one, dict) and "error" in one]
    assert len(failed) + frames.count("[DONE]") == 1, "one end, and nothing after it"
    error = error_in(failed[0]) if failed else None
    assert failed == [] or frames[-1] is failed[0]
    finishes = [c["finish_reason"] for one in frames if isinstance(one, dict) for c in one.get("choices", ())]
    assert sum(bool(finish) for finish in finishes) == (not failed)
    return Ended(200, error, words_of(frames), answer.text, answer.headers)


# -- a provider's status --


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", VENDED)
@pytest.mark.parametrize(
    ("status", "expected", "code", "kind"),
    [
        (400, 400, "provider_refused", "invalid_request_error"),
        (401, 502, "upstream_credentials", "api_error"),
        (403, 502, "upstream_credentials", "api_error"),
        (404, 404, "model_not_found", "invalid_request_error"),
        (429, 429, "upstream_busy", "rate_limit_error"),
        (500, 502, "upstream_failure", "api_error"),
        (503, 502, "upstream_failure", "api_error"),
    ],
)
async def test_a_providers_status_becomes_ours(
    served: House,
    provider: FakeProvider,
    model: str,
    stream: bool,
    status: int,
    expected: int,
    code: str,
    kind: str,
) -> None:
    provider.then(Reply(status=status))
    ended = await outcome(served, model, stream=stream)
    assert (ended.status, ended.code) == (expected, code)
    assert ended.error is not None
    assert ended.error["type"] == kind


@pytest.mark.parametrize("model", ["openai/m", "agent/simple@openai/m"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
async def test_the_official_client_raises_its_own_exceptions(
    client: AsyncOpenAI, provider: FakeProvider, model: str, stream: bool, status: int, expected: Any
) -> None:
    provider.then(Reply(status=status))
    with pytest.raises(expected) as caught:
        await client.chat.completions.create(model=model, messages=says(), stream=stream)
    assert caught.value.code
    assert caught.value.request_id


@pytest.mark.parametrize("model", ["openai/m", "agent/simple@openai/m"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_conversation_that_is_too_long_has_openais_code(
    served: House, provider: FakeProvider, model: str, stream: bool
) -> None:
    provider.then(Reply(status=400, error={"message": "maximum context length", "code": "context_length_exceeded"}))
    ended = await outcome(served, model, stream=stream)
    assert (ended.status, ended.code) == (400, "context_length_exceeded")
    assert ended.error is not None
    assert ended.error["param"] == "messages"


async def test_a_wait_is_passed_on(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(status=429, headers={"retry-after": "120"}))
    assert (await outcome(served, "openai/m", stream=True)).headers["retry-after"] == "120"


# -- a provider's faults --


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", VENDED)
@pytest.mark.parametrize(
    ("fault", "expected", "partial"),
    [
        ("hang_before", 504, False),
        ("hang_between", 504, True),
        ("cut", 502, True),
        ("malformed", 502, True),
        ("html", 502, False),
        ("empty_body", 502, False),
        ("gzip", 502, False),
        ("redirect", 502, False),
        ("no_finish", 502, True),
    ],
)
async def test_a_fault_is_an_error_and_keeps_what_arrived(
    served: House, provider: FakeProvider, model: str, stream: bool, fault: Any, expected: int, partial: bool
) -> None:
    provider.then(Reply(fault=fault))
    ended = await outcome(served, model, stream=stream)
    assert ended.error is not None
    run = (await served.client.get("/api/runs?limit=1")).json()["runs"][0]
    assert run["status"] == "failed"
    if stream and partial:
        assert ended.status == 200
        assert ended.text
        assert TEXT.startswith(ended.text)
        assert run["error"]["code"] == ended.code
        assert ended.code in {504: ("timeout",), 502: ("upstream_cut", "upstream_broken", "upstream_unreadable",
                                                       "upstream_failure")}[expected]  # fmt: skip
    elif stream and fault == "html":
        assert ended.code in ("upstream_cut", "upstream_unreadable")
    else:
        assert ended.status == expected


@pytest.mark.parametrize("model", VENDED)
@pytest.mark.parametrize("fault", ["invalid_utf8", "huge_line", "error_inside"])
async def test_a_stream_that_turns_to_rubbish_fails_after_its_good_words(
    served: House, provider: FakeProvider, model: str, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    ended = await outcome(served, model, stream=True)
    assert ended.code == ("upstream_failure" if fault == "error_inside" else "upstream_unreadable")
    assert ended.text
    assert TEXT.startswith(ended.text)


@pytest.mark.parametrize("model", VENDED)
async def test_a_slow_drip_ends_at_the_total_limit(served: House, provider: FakeProvider, model: str) -> None:
    provider.then(Reply(words=tuple("x" * 200), fault="drip"))
    ended = await outcome(served, model, stream=True)
    assert ended.code == "timeout"
    assert ended.text


@pytest.mark.parametrize("model", VENDED)
async def test_a_provider_that_hangs_after_its_last_word_keeps_nobody_waiting(
    served: House, provider: FakeProvider, model: str
) -> None:
    provider.then(Reply(fault="hang_at_end"))
    ended = await outcome(served, model, stream=True)
    assert (ended.error, ended.text) == (None, TEXT)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", VENDED)
async def test_an_unknown_finish_reason_is_a_stop(
    served: House, provider: FakeProvider, model: str, stream: bool
) -> None:
    provider.then(Reply(fault="unknown_finish"))
    ended = await outcome(served, model, stream=stream)
    assert (ended.error, ended.text) == (None, TEXT)
    assert '"finish_reason":"stop"' in ended.raw


@pytest.mark.parametrize("model", VENDED)
async def test_an_answer_without_choices_is_none(served: House, provider: FakeProvider, model: str) -> None:
    provider.then(Reply(fault="empty_choices"))
    if "ollama" in model and model.startswith("agent"):
        pytest.skip("Ollama's own wire has no choices")
    assert (await outcome(served, model, stream=False)).code == "upstream_unreadable"


EVENT = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
GOOD = {**EVENT, "choices": [{"index": 0, "delta": {"content": "good"}, "finish_reason": None}]}
DEEP: Any = "x"
for _ in range(400):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "bad",
    [
        b"7",
        b"null",
        b'"text"',
        b"[]",
        b"{} , {}",
        b"[" * 3_000,
        b'{"choices": 5}',
        b'{"choices": [5]}',
        b'{"choices": {"a": 1}}',
        b'{"choices": [{"index": [1], "delta": {"content": "x", "a": 1}, "finish_reason": "stop"}]}',
        b'{"choices": [{"index": 0, "delta": {}, "finish_reason": {"a": 1}}]}',
        b'{"choices": [{"index": 0, "delta": {"content": "\\ud800"}}]}',
        b'{"error": "overloaded"}',
        b'{"choices": [{"index": 0, "delta": {"content": "x"}}], "error": {"message": "overloaded"}}',
    ],
)
async def test_no_event_of_a_provider_breaks_more_than_its_own_run(
    served: House, provider: FakeProvider, bad: bytes
) -> None:
    provider.then(Reply(events=(GOOD, bad)))
    ended = await outcome(served, "openai/m", stream=True)
    assert ended.error is not None
    assert ended.error["type"] == "api_error"
    assert ended.code != "internal"
    assert served.services.direct.runs.count == 0


@pytest.mark.parametrize(
    "whole",
    [
        7,
        [],
        {},
        {"choices": None},
        {"choices": 5},
        {"choices": "abc"},
        {"choices": [5]},
        {"choices": {"a": 1}},
        {"choices": [{"message": None}]},
        {"choices": [{"message": 5, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": {"a": 1}}]},
        {"choices": [{"message": {"content": "x"}}]},
        {"choices": [{"message": {"content": "x", "more": DEEP}, "finish_reason": "odd"}]},
        {"error": "overloaded"},
    ],
    ids=lambda whole: str(whole)[:60],
)
async def test_no_answer_of_a_provider_breaks_more_than_its_own_run(
    served: House, provider: FakeProvider, whole: Any
) -> None:
    provider.then(Reply(whole=b"" if whole is None else whole))
    ended = await outcome(served, "openai/m", stream=False)
    assert ended.status == 502
    assert served.services.direct.runs.count == 0


async def test_a_call_with_arguments_of_endless_depth_is_kept_and_ends(served: House, provider: FakeProvider) -> None:
    arguments = '{"a":' * 900 + "1" + "}" * 900
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    whole = {**EVENT, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    provider.then(Reply(whole=whole))
    answer = await post(served, {"model": "openai/m", "messages": says()})
    assert answer.status_code == 200
    run = (await served.client.get(f"/api/runs/{answer.headers['x-run-id']}")).json()
    assert run["status"] == "completed"
    assert served.services.direct.runs.count == 0


@pytest.mark.parametrize(("fault", "status"), [("hang_in_line", 504), ("cut_in_line", 502)])
async def test_a_provider_that_stops_in_its_first_line_is_answered_with_a_status(
    served: House, provider: FakeProvider, fault: Any, status: int
) -> None:
    provider.then(Reply(fault=fault))
    ended = await outcome(served, "openai/m", stream=True)
    assert ended.status == status
    run = (await served.client.get("/api/runs?limit=1")).json()["runs"][0]
    assert run["status"] == "failed"


async def test_the_official_client_raises_a_failure_in_mid_stream(client: AsyncOpenAI, provider: FakeProvider) -> None:
    for model in VENDED:
        provider.then(Reply(fault="cut"))
        stream = await client.chat.completions.create(model=model, messages=says(), stream=True)
        heard = ""
        with pytest.raises(openai.APIError) as caught:  # noqa: PT012 - what is heard before it counts
            async for one in stream:
                heard += one.choices[0].delta.content or ""
        assert heard
        assert TEXT.startswith(heard)
        assert caught.value.code in ("upstream_cut", "upstream_broken")
        assert caught.value.type == "api_error"


# -- the caller's own mistakes --


@pytest.mark.parametrize("model", ["openai/m", "offline/rules", "agent/simple@offline/rules"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0"),
        ({"messages": [{"content": "x"}]}, "messages.0"),
        ({"messages": ["x"]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "zzz"}]}]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": says() * 2_001}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream_options": {"zzz": 1}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": "x"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": []}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"metadata": {"a": {"b": 1}}}, "metadata"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": "a\r\nx-evil: 1"}, "model"),
        ({"model": "offline/日本"}, "model"),
        ({"model": "agent/"}, "model"),
        ({"model": "agent/../x"}, "model"),
        ({"model": "agent/simple@"}, "model"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_body_is_a_400_that_names_the_place(
    served: House, provider: FakeProvider, model: str, stream: bool, change: dict[str, Any], param: str
) -> None:
    answer = await post(served, {"model": model, "messages": says(), "stream": stream, **change})
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    assert error["param"] is not None
    assert error["param"].startswith(param)
    assert provider.calls == 0
    assert len(answer.content) < 3_000


async def test_who_has_no_credential_is_not_asked_for_a_body(served: House) -> None:
    answer = await served.anyone.post("/v1/chat/completions", content=b"rubbish")
    assert answer.status_code == 401
    error_of(answer)
    async with sdk(served, "wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="offline/rules", messages=says())
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def key_of(house: House, **limits: Any) -> str:
    made = await house.client.post("/auth/keys", json={"name": "k", **limits})
    assert made.status_code == 201, made.text
    key: str = made.json()["key"]
    return key


@pytest.mark.parametrize("stream", [True, False])
async def test_a_key_does_what_it_may_and_no_more(served: House, provider: FakeProvider, stream: bool) -> None:
    async def asked(key: str, model: str) -> str | None:
        headers = {"authorization": f"Bearer {key}"}
        body = {"model": model, "messages": says(), "stream": stream}
        answer = await served.anyone.post("/v1/chat/completions", json=body, headers=headers)
        if answer.status_code == 200:
            return None
        error = error_of(answer)
        assert (answer.status_code, error["type"]) == (403, "permission_error")
        assert error["param"] in ("model", None)
        code: str = error["code"]
        return code

    blind = await key_of(served, scopes=["sessions"])
    assert await asked(blind, "openai/m") == "missing_scope"
    assert await asked(blind, "agent/simple") == "missing_scope"
    async with sdk(served, blind) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="openai/m", messages=says(), stream=stream)
    narrow = await key_of(served, scopes=["completion"], models=["openai/gpt-4o-mini"])
    assert await asked(narrow, "openai/gpt-4o-mini") is None
    assert await asked(narrow, "openai/other") == "model_not_allowed"
    assert await asked(narrow, "agent/simple@openai/gpt-4o-mini") is None
    assert await asked(narrow, "agent/simple@openai/other") == "model_not_allowed"
    bound = await key_of(served, scopes=["completion"], agents=["simple"])
    assert await asked(bound, "agent/simple@openai/gpt-4o-mini") is None
    assert await asked(bound, "agent/react@openai/gpt-4o-mini") == "agent_not_allowed"
    assert await asked(bound, "openai/gpt-4o-mini") == "agent_not_allowed"
    async with sdk(served, bound) as client:
        listed = {one.id async for one in client.models.list()}
        assert {one for one in listed if one.startswith("agent/")} == {"agent/simple"}
        assert "openai/fake-large" not in listed, "what cannot be asked is not listed"
        await client.models.retrieve("agent/simple@openai/gpt-4o-mini")
        for name in ("openai/fake-large", "agent/react"):
            with pytest.raises(openai.PermissionDeniedError):
                await client.models.retrieve(name)
    async with sdk(served, narrow) as client:
        await client.models.retrieve("openai/gpt-4o-mini")
        for name in ("openai/fake-large", "agent/react@openai/fake-large"):
            with pytest.raises(openai.PermissionDeniedError):
                await client.models.retrieve(name)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("nobody/m", "model_not_found"),
        ("unheard-of", "model_not_found"),
        ("agent/nobody", "agent_not_found"),
        ("agent/simple@nobody/m", "model_not_found"),
    ],
)
async def test_what_is_not_there_is_a_404(client: AsyncOpenAI, model: str, code: str, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model=model, messages=says(), stream=stream)
    assert (caught.value.code, caught.value.param) == (code, "model")


@pytest.mark.parametrize("model", ["openai/m", "agent/simple@openai/m"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_busy_session_is_a_conflict_that_the_client_does_not_repeat(
    open_with: Opener, settings: Settings, provider: FakeProvider, model: str, stream: bool
) -> None:
    patient = {"first_token_timeout": 60, "idle_timeout": 60, "total_timeout": 60}  # it stays busy, however slow we are
    served = await open_with(reaching(settings, provider, **patient))
    first = await post(served, {"model": model, "messages": says()})
    session = first.headers["x-session-id"]
    provider.reset()
    provider.then(Reply(fault="hang_between"))
    bound = {"X-Session-Id": session}
    async with sdk(served, max_retries=2) as client, anyio.create_task_group() as group:

        async def occupy() -> None:
            await post(served, {"model": model, "messages": says(), "stream": True}, x_session_id=session)

        group.start_soon(occupy)
        await provider.begun.wait()
        runs = len((await served.client.get("/api/runs?limit=200")).json()["runs"])
        with pytest.raises(openai.ConflictError) as caught:
            await client.chat.completions.create(model=model, messages=says(), stream=stream, extra_headers=bound)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert caught.value.response.request.headers.get("x-stainless-retry-count") == "0"
        assert len((await served.client.get("/api/runs?limit=200")).json()["runs"]) == runs
        group.cancel_scope.cancel()
    assert provider.calls == 1


async def test_too_many_runs_are_a_rate_limit_for_both_kinds(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    few = reaching(settings, provider).model_copy(update={"agents": AgentSettings(max_concurrent_runs=1)})
    house = await open_with(few)
    provider.then(Reply(fault="hang_between"))
    async with sdk(house) as client, anyio.create_task_group() as group:

        async def occupy() -> None:
            await post(house, {"model": "openai/m", "messages": says(), "stream": True})

        group.start_soon(occupy)
        await provider.begun.wait()
        for model in ("openai/m", "agent/simple@openai/m"):
            for stream in (True, False):
                with pytest.raises(openai.RateLimitError) as caught:
                    await client.chat.completions.create(model=model, messages=says(), stream=stream)
                assert caught.value.response.headers["retry-after"] == "1"
        group.cancel_scope.cancel()


@pytest.mark.parametrize("model", ["openai/m", "agent/simple@openai/m"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_run_has_a_time_limit_of_ours(
    open_with: Opener, settings: Settings, provider: FakeProvider, model: str, stream: bool
) -> None:
    short = reaching(settings, provider).model_copy(update={"agents": AgentSettings(max_execution_time=0.3)})
    house = await open_with(short)
    provider.then(Reply(fault="hang_between"))
    ended = await outcome(house, model, stream=stream)
    assert ended.code == "run_timed_out"
    assert ended.status == (200 if stream else 504)
    run = (await house.client.get("/api/runs?limit=1")).json()["runs"][0]
    assert run["status"] == "timeout"
