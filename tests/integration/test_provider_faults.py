"""Whatever a provider does, the caller gets a clear error of the right kind, in time, and no word of the provider's."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from pydantic import SecretStr

from config.settings import CompatibleProvider, ProviderSettings, Settings
from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.events import TextDelta
from domain.models import CompletionRequest
from tests.fakes.house import House, open_house, text_of
from tests.fakes.providers import TEXT, FakeProvider, Reply

pytestmark = pytest.mark.anyio

WIRES = ("openai", "mistral", "ollama", "vllm")
Opener = Callable[[Settings], Awaitable[House]]
LIMIT = 0.3  # seconds of each of the provider's deadlines


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    providers = ProviderSettings(
        discover_local=False,
        openai_api_key=SecretStr("sk-secret-key-of-ours"),
        openai_base_url=f"{shared_provider.url}/v1",
        mistral_base_url=f"{shared_provider.url}/mistral/v1",
        ollama_base_url=shared_provider.url,
        compatible={"vllm": CompatibleProvider(base_url=f"{shared_provider.url}/vllm/v1")},
        first_token_timeout=LIMIT,
        idle_timeout=LIMIT,
        total_timeout=LIMIT * 2,
        max_retries=0,
    )
    async with open_house(shared_settings.model_copy(update={"providers": providers})) as house:
        yield house


async def outcome(house: House, wire: str, *, streamed: bool) -> dict[str, Any]:
    """How the call ended, in one shape for both doors: status, code, and the words that arrived."""
    body = {"message": "Salut", "model": f"{wire}/fake-large"}
    with anyio.fail_after(LIMIT * 2 + 5):
        if not streamed:
            answer = await house.client.post("/completion", json=body)
            told = answer.json()
            return {
                "status": answer.status_code,
                "code": told.get("code"),
                "raw": answer.text,
                "text": "",
                "answer": answer,
            }
        events = await house.events(body)
    last = events[-1]
    assert [event["kind"] for event in events].count(last["kind"]) == 1
    status = {"run.finished": 200, "run.timed_out": 504}.get(last["kind"]) or {
        "upstream_failure": 502, "timeout": 504, "rate_limited": 429, "invalid": 422, "not_found": 404, "internal": 500,
    }[last["error"]]  # fmt: skip
    return {"status": status, "code": last.get("code"), "raw": str(events), "text": text_of(events), "last": last}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (400, 422, "provider_refused"),
        (401, 502, "upstream_credentials"),
        (403, 502, "upstream_credentials"),
        (404, 404, "model_not_found"),
        (408, 502, "upstream_failure"),
        (429, 429, "upstream_busy"),
        (500, 502, "upstream_failure"),
        (503, 502, "upstream_failure"),
        (529, 502, "upstream_failure"),
    ],
)
async def test_a_providers_status_becomes_ours(
    served: House, provider: FakeProvider, wire: str, streamed: bool, status: int, expected: int, code: str
) -> None:
    provider.then(Reply(status=status))
    ended = await outcome(served, wire, streamed=streamed)
    assert (ended["status"], ended["code"]) == (expected, code)
    assert "sk-secret" not in ended["raw"]
    assert "was refused" not in ended["raw"], "the provider's own words stay in our log"


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("wire", WIRES)
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
async def test_a_fault_is_an_error_of_its_kind_and_keeps_what_arrived(
    served: House, provider: FakeProvider, wire: str, streamed: bool, fault: Any, expected: int, partial: bool
) -> None:
    provider.then(Reply(fault=fault))
    ended = await outcome(served, wire, streamed=streamed)
    assert ended["status"] == expected
    if streamed and partial:
        assert ended["text"], "the words before the fault were told"
        assert TEXT.startswith(ended["text"])


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("fault", ["invalid_utf8", "error_inside", "huge_line"])
async def test_a_stream_that_turns_to_rubbish_fails_after_its_good_words(
    served: House, provider: FakeProvider, wire: str, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    ended = await outcome(served, wire, streamed=True)
    assert ended["status"] == 502
    assert ended["text"]
    assert TEXT.startswith(ended["text"])
    assert "sk-secret" not in ended["raw"]


@pytest.mark.parametrize("wire", WIRES)
async def test_a_slow_drip_ends_at_the_total_limit(served: House, provider: FakeProvider, wire: str) -> None:
    provider.then(Reply(words=tuple("x" * 200), fault="drip"))
    ended = await outcome(served, wire, streamed=True)
    assert ended["status"] == 504
    assert ended["text"]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("wire", WIRES)
async def test_an_unknown_finish_reason_is_a_stop(
    served: House, provider: FakeProvider, wire: str, streamed: bool
) -> None:
    provider.then(Reply(fault="unknown_finish"))
    assert (await outcome(served, wire, streamed=streamed))["status"] == 200


@pytest.mark.parametrize("wire", WIRES)
async def test_a_provider_that_hangs_after_its_last_word_keeps_nobody_waiting(
    served: House, provider: FakeProvider, wire: str
) -> None:
    provider.then(Reply(fault="hang_at_end"))
    ended = await outcome(served, wire, streamed=True)
    assert ended["status"] == 200
    assert ended["text"] == TEXT


@pytest.mark.parametrize("wire", ["openai", "mistral", "vllm"])
async def test_tool_arguments_that_are_no_json_do_not_break_the_run(
    served: House, provider: FakeProvider, wire: str
) -> None:
    provider.then(Reply(tool=("calculator", {"expression": "6*7"}), fault="not_json_arguments"))
    events = await served.events({"message": "x", "model": f"{wire}/m", "agent": "react"})
    assert events[-1]["kind"] == "run.finished"
    assert not [event for event in events if event["kind"] == "tool.started"]


@pytest.mark.parametrize("wire", WIRES)
async def test_a_hostile_tool_name_calls_nothing(served: House, provider: FakeProvider, wire: str) -> None:
    provider.then(Reply(tool=("__import__('os')\n", {})), Reply(words=("sorry",)))
    events = await served.events({"message": "x", "model": f"{wire}/m", "agent": "react"})
    assert events[-1]["output"] == "sorry"
    assert next(event for event in events if event["kind"] == "tool.finished")["ok"] is False


async def test_a_context_that_is_too_long_is_the_callers_to_mend(served: House, provider: FakeProvider) -> None:
    error = {"message": "maximum context length", "code": "context_length_exceeded"}
    provider.then(Reply(status=400, error=error))
    ended = await outcome(served, "openai", streamed=False)
    assert (ended["status"], ended["code"]) == (422, "context_length_exceeded")


async def test_retry_after_is_passed_on_when_it_is_long(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(status=429, headers={"retry-after": "120"}))
    ended = await outcome(served, "openai", streamed=False)
    assert ended["answer"].headers["retry-after"] == "120"


async def test_a_spent_account_is_our_operators_trouble_not_the_callers(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(status=429, error={"message": "pay", "code": "insufficient_quota"}))
    ended = await outcome(served, "openai", streamed=False)
    assert (ended["status"], ended["code"]) == (502, "upstream_quota")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_busy_provider_is_asked_again_before_the_first_byte_only(
    open_with: Opener, settings: Settings, provider: FakeProvider, streamed: bool
) -> None:
    providers = ProviderSettings(discover_local=False, openai_base_url=f"{provider.url}/v1", max_retries=2)
    house = await open_with(settings.model_copy(update={"providers": providers}))
    provider.then(Reply(status=429, headers={"retry-after-ms": "10"}), Reply(status=503), Reply())
    assert (await outcome(house, "openai", streamed=streamed))["status"] == 200
    assert provider.calls == 3
    if streamed:
        provider.then(Reply(fault="cut"))
        assert (await outcome(house, "openai", streamed=True))["status"] == 502
        assert provider.calls == 4, "what has begun is not begun again"


async def test_a_provider_that_is_not_there_is_a_502(
    open_with: Opener, settings: Settings, unused_address: str
) -> None:
    providers = ProviderSettings(discover_local=False, openai_base_url=unused_address, max_retries=0)
    house = await open_with(settings.model_copy(update={"providers": providers}))
    for streamed in (True, False):
        ended = await outcome(house, "openai", streamed=streamed)
        assert (ended["status"], ended["code"]) == (502, "upstream_unreachable")


async def test_a_whole_answer_may_take_longer_than_a_first_token(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    """Unstreamed, the first byte comes when everything is said: only the total limit counts."""
    providers = ProviderSettings(
        discover_local=False, openai_base_url=f"{provider.url}/v1", first_token_timeout=0.05, total_timeout=20
    )
    house = await open_with(settings.model_copy(update={"providers": providers}))
    provider.then(Reply(pause=0.3))
    answer = await house.client.post("/completion", json={"message": "x", "model": "openai/m"})
    assert (answer.status_code, answer.json().get("response")) == (200, TEXT)


async def test_a_slow_reader_is_not_taken_for_a_silent_provider(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    """The source is paused for longer than the provider may be silent; that is nobody's fault, and nothing is lost."""
    providers = ProviderSettings(discover_local=False, openai_base_url=f"{provider.url}/v1", idle_timeout=0.1)
    house = await open_with(settings.model_copy(update={"providers": providers}))
    provider.then(Reply(words=tuple(f"{number} " for number in range(20_000))))
    request = CompletionRequest(message="x", model="openai/m")
    admin = await house.services.users.find("admin")
    operator = Principal(UserId(admin.id), "u", frozenset({Scope.ADMIN}), CredentialKind.API_KEY, "k")
    run = await house.services.agents.stream(request, operator)
    heard, paused = 0, False
    with anyio.fail_after(30):
        async for batch in run.batches():
            heard += sum(isinstance(one.event, TextDelta) and not one.event.done for one in batch)
            if heard > 1_000 and not paused:
                paused = True
                await anyio.sleep(0.4)
    assert paused
    assert run.error is None
    assert heard == 20_000
