"""Relayed sessions: a provider's own realtime model behind our door, metered and written down, its secrets kept."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from config.settings import ProviderSettings, Settings
from tests.fakes.calls import at_24k, calling
from tests.fakes.house import House, open_house
from tests.fakes.realtime import Socket, address, talking, user
from tests.fakes.realtime_provider import HEARD_USAGE, SECRET, USAGE, WORDS, RealtimeProvider, realtime_provider
from tests.fakes.speech import spoken_pcm

pytestmark = pytest.mark.anyio
MODEL = "openai/gpt-realtime"
ANSWER = "".join(WORDS)
HEARING = {"type": "realtime", "audio": {"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}}}


@pytest.fixture
async def provider() -> AsyncIterator[RealtimeProvider]:
    async with realtime_provider() as made:
        yield made


@pytest.fixture
async def served(settings: Settings, provider: RealtimeProvider) -> AsyncIterator[House]:
    providers = ProviderSettings(discover_local=False, openai_api_key=SecretStr(SECRET), openai_base_url=provider.url)
    async with open_house(settings.model_copy(update={"providers": providers})) as house:
        yield house


async def respond(talk: Socket, **response: Any) -> list[dict[str, Any]]:
    await talk.send("response.create", **({"response": response} if response else {}))
    return await until(talk, "response.done")


async def until(talk: Socket, kind: str) -> list[dict[str, Any]]:
    """As `Socket.until`, of events that are a provider's."""
    return await talk.until(kind)


async def told(house: House, session_id: str) -> list[tuple[str, str]]:
    answer = await house.client.get(f"/api/sessions/{session_id}/messages")
    return [(one["role"], one["content"]) for one in answer.json()["messages"]]


async def runs(house: House, most: int = 50) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await house.client.get("/api/runs", params={"limit": most})).json()["runs"]
    return found


async def settled(house: House, provider: RealtimeProvider) -> None:
    """Until the session is over on both sides."""
    with anyio.fail_after(15):
        while house.services.realtime.count or provider.open:  # noqa: ASYNC110 - nobody rings
            await asyncio.sleep(0.02)


async def test_events_go_both_ways_under_the_houses_own_key(served: House, provider: RealtimeProvider) -> None:
    async with talking(served, MODEL) as talk:
        assert talk.session["model"] == MODEL
        assert talk.session["id"] != "sess_theirs"
        assert "client_secret" not in talk.session
        await talk.say("Salut")
        events = await respond(talk)
        spoken = [event for event in events if event["type"] == "response.output_audio.delta"]
        assert len(spoken) == len(WORDS)
    assert provider.paths == ["/v1/realtime?model=gpt-realtime"]
    (headers,) = provider.headers
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert served.tokens["access_token"] not in str(headers)
    assert provider.kinds() == ["conversation.item.create", "response.create"]


async def test_each_response_is_a_run_that_is_metered(served: House, provider: RealtimeProvider) -> None:
    async with talking(served, MODEL) as talk:
        for text in ("One", "Two"):
            await talk.say(text)
            await respond(talk)
        session_id = talk.session["id"]
        assert await told(served, session_id) == [
            ("user", "One"), ("assistant", ANSWER), ("user", "Two"), ("assistant", ANSWER),
        ]  # fmt: skip
    first, second = await runs(served)
    for run in (first, second):
        assert (run["status"], run["model"], run["output"]) == ("completed", MODEL, ANSWER)
        assert run["usage"]["input_tokens"] == USAGE["input_tokens"]
        assert run["usage"]["output_tokens"] == USAGE["output_tokens"]
        assert run["usage"]["audio_tokens"] == 12
        assert run["usage"]["cached_tokens"] == 4


@pytest.mark.parametrize("late", [False, True])
async def test_what_was_said_aloud_is_written_down_and_paid_for(
    served: House, provider: RealtimeProvider, late: bool
) -> None:
    provider.late_transcript = late
    async with talking(served, MODEL) as talk:
        await talk.send("session.update", session=HEARING)
        await talk.until("session.updated")
        await talk.send("input_audio_buffer.commit")
        await talk.until("conversation.item.done")
        await respond(talk)
        if late:
            await talk.until("conversation.item.input_audio_transcription.completed")
        assert await eventually(lambda: told(served, talk.session["id"]), 2) == [
            ("user", "Salut !"), ("assistant", ANSWER),
        ]  # fmt: skip
    (run,) = await runs(served)
    assert run["status"] == "completed"
    assert run["usage"]["input_tokens"] == int(str(USAGE["input_tokens"])) + int(str(HEARD_USAGE["input_tokens"]))


async def eventually(look: Callable[[], Awaitable[list[Any]]], count: int) -> list[Any]:
    with anyio.fail_after(15):
        while len(found := await look()) < count:  # noqa: ASYNC110 - nobody rings
            await asyncio.sleep(0.02)
    return found


async def test_a_session_goes_on_where_it_was(served: House, provider: RealtimeProvider) -> None:
    async with talking(served, MODEL) as talk:
        await talk.say("One")
        await respond(talk)
        session_id = talk.session["id"]
    await settled(served, provider)
    provider.heard.clear()
    async with talking(served, session=session_id) as talk:  # whoever answered before answers
        assert (talk.session["id"], talk.session["model"]) == (session_id, MODEL)
        item = await talk.say("Two")
        assert item["content"][0]["text"] == "Two"  # the client is not told again what it knows
        await respond(talk)
    said = [event["item"]["content"][0]["text"] for event in provider.heard if "item" in event]
    assert said == ["One", ANSWER, "Two"]
    assert [text for _, text in await told(served, session_id)] == ["One", ANSWER, "Two", ANSWER]


async def test_out_of_band_responses_are_no_part_of_the_session(served: House, provider: RealtimeProvider) -> None:
    async with talking(served, MODEL) as talk:
        await respond(talk, conversation="none")
        assert await told(served, talk.session["id"]) == []
    (run,) = await runs(served)
    assert (run["status"], run["output"]) == ("completed", ANSWER)


async def test_who_leaves_in_the_middle_is_gone_at_the_provider_within_a_second(
    served: House, provider: RealtimeProvider
) -> None:
    provider.fault = "hang"
    async with talking(served, MODEL) as talk:
        await talk.say("One")
        await talk.send("response.create")
        await talk.until("response.output_audio.delta")
        session_id = talk.session["id"]
    with anyio.fail_after(1):
        await provider.all_gone.wait()
    await settled(served, provider)
    (run,) = await runs(served)
    assert run["status"] == "cancelled"
    assert run["usage"]["estimated"]
    assert (await told(served, session_id))[-1] == ("assistant", WORDS[0])


@pytest.mark.parametrize("fault", ["closes", "breaks", "rubbish", "binary", "cut"])
async def test_a_provider_that_is_gone_is_an_error_and_1011(
    served: House, provider: RealtimeProvider, fault: Any
) -> None:
    provider.fault = fault
    async with talking(served, MODEL) as talk:
        await talk.say("One")
        await talk.send("response.create")
        error = (await talk.until("error"))[-1]["error"]
        assert error["code"].startswith("upstream_")
        assert await talk.closed() == 1011
    await settled(served, provider)
    assert [run["status"] for run in await runs(served)] == ["failed" if fault == "cut" else "cancelled"]


@pytest.mark.parametrize("fault", ["bad_key", "no_credit"])
async def test_words_about_our_account_are_not_handed_on(
    served: House, provider: RealtimeProvider, caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    provider.fault = fault
    caplog.set_level(logging.DEBUG)
    async with talking(served, MODEL) as talk:
        await talk.say("One")
        await talk.send("response.create")
        last = (await talk.until("error" if fault == "bad_key" else "response.done"))[-1]
        assert "sk-" not in str(last)
        assert "org-" not in str(last)
        error = last["error"] if fault == "bad_key" else last["response"]["status_details"]["error"]
        assert error["code"] == ("upstream_credentials" if fault == "bad_key" else "upstream_quota")
        provider.fault = None
        assert (await respond(talk))[-1]["response"]["status"] == "completed"


async def test_other_errors_of_the_provider_are_its_own(served: House, provider: RealtimeProvider) -> None:
    async with talking(served, MODEL) as talk:
        await talk.send("nonsense", event_id="mine")
        error = await talk.error()
        assert (error["message"], error["event_id"]) == ("No such type.", "mine")


async def test_a_refused_handshake_is_an_http_status_without_its_words(
    served: House, provider: RealtimeProvider
) -> None:
    provider.fault = "refused"
    headers = {"authorization": f"Bearer {served.tokens['access_token']}"}
    with pytest.raises(InvalidStatus) as refused:
        async with connect(address(served, model=MODEL), additional_headers=headers):
            pass
    assert refused.value.response.status_code == 502
    assert b"sk-" not in (refused.value.response.body or b"")
    await settled(served, provider)
    assert (await served.client.get("/api/sessions")).json()["sessions"] == []


@pytest.mark.parametrize(
    ("session", "code"),
    [
        ({"model": "gpt-5-realtime"}, "invalid_value"),
        ({"prompt": {"id": "pmpt_1"}}, "unsupported_parameter"),
        ({"tracing": "auto"}, "unsupported_parameter"),
    ],
)
async def test_what_is_the_houses_cannot_be_set(
    served: House, provider: RealtimeProvider, session: dict[str, Any], code: str
) -> None:
    async with talking(served, MODEL) as talk:
        await talk.send("session.update", session={"type": "realtime", **session}, event_id="mine")
        error = await talk.error()
        assert (error["code"], error["event_id"]) == (code, "mine")
        await talk.wire.send("{rubbish")
        assert (await talk.error())["code"] == "invalid_json"
    assert provider.heard == []


async def test_a_client_secret_sets_up_a_relayed_session(served: House, provider: RealtimeProvider) -> None:
    session = {"type": "realtime", "model": MODEL, "instructions": "Be short.", "output_modalities": ["audio"]}
    made = await served.client.post("/v1/realtime/client_secrets", json={"session": session})
    assert made.status_code == 200, made.text
    async with talking(served, token=made.json()["value"]) as talk:
        assert talk.session["model"] == MODEL
        await talk.until("session.updated")
    (update,) = provider.heard
    assert update["session"] == {"type": "realtime", "instructions": "Be short.", "output_modalities": ["audio"]}


async def test_who_speaks_into_an_answer_of_a_call_silences_it_at_once(
    served: House, provider: RealtimeProvider
) -> None:
    provider.sound = at_24k(spoken_pcm())
    whole = len(provider.sound) * len(WORDS) / 48
    async with calling(served, MODEL) as caller:
        caller.send("response.create")
        await caller.until("output_audio_buffer.started")
        with anyio.fail_after(15):
            await caller.loud.wait()
        caller.send("test.speech")
        begun = time.monotonic()
        assert "output_audio_buffer.cleared" in [
            event["type"] for event in await caller.until("output_audio_buffer.cleared")
        ]
        with anyio.fail_after(15):
            await caller.quiet.wait()
        assert time.monotonic() - begun < 1.5  # of more than eight seconds of speech
        with anyio.fail_after(15):
            while "conversation.item.truncate" not in provider.kinds():  # noqa: ASYNC110 - nobody rings
                await asyncio.sleep(0.01)
        cut = next(event for event in provider.heard if event["type"] == "conversation.item.truncate")
        assert 0 < cut["audio_end_ms"] < whole / 2
    await settled(served, provider)


async def test_a_client_of_a_call_clears_what_waits_to_be_played(served: House, provider: RealtimeProvider) -> None:
    provider.sound = at_24k(spoken_pcm())
    async with calling(served, MODEL) as caller:
        caller.send("response.create")
        await caller.until("output_audio_buffer.started")
        caller.send("output_audio_buffer.clear")
        await caller.until("output_audio_buffer.cleared")
    await settled(served, provider)
    assert "output_audio_buffer.clear" not in provider.kinds()


async def test_a_call_is_relayed_too(served: House, provider: RealtimeProvider) -> None:
    async with calling(served, MODEL) as caller:
        caller.send("conversation.item.create", item=user("Salut"))
        caller.send("response.create")
        events = await caller.until("output_audio_buffer.stopped")
        kinds = [event["type"] for event in events]
        assert "output_audio_buffer.started" in kinds
        assert "response.output_audio.delta" not in kinds
        with anyio.fail_after(15):
            while "input_audio_buffer.append" not in provider.kinds():  # noqa: ASYNC110 - nobody rings
                await asyncio.sleep(0.02)
    await settled(served, provider)
