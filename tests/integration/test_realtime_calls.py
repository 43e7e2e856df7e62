"""WebRTC calls: events on the data channel, sound on the tracks, and nothing left when peers leave, however they do."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aioice.ice
import anyio
import psutil
import pytest

from config.realtime_settings import RealtimeSettings
from config.settings import Settings
from services.realtime.seams import VoiceSeams
from tests.fakes.calls import Caller, Ears, at_24k, calling, loudness, voices
from tests.fakes.house import House, open_house
from tests.fakes.realtime import user, words
from tests.fakes.speech import spoken_pcm

pytestmark = pytest.mark.anyio
Opener = Callable[[Settings], Awaitable[House]]
MODEL = "offline/rules"


@pytest.fixture(scope="module")
async def served(shared_settings: Settings) -> AsyncIterator[House]:
    async with open_house(shared_settings) as house:
        yield house


async def silence(house: House) -> None:
    """Until no call is open any more."""
    with anyio.fail_after(15):
        while house.services.calls.count or house.services.realtime.count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def told(house: House, session_id: str) -> list[tuple[str, str]]:
    answer = await house.client.get(f"/api/sessions/{session_id}/messages")
    return [(one["role"], one["content"]) for one in answer.json()["messages"]]


async def test_a_call_is_a_session_in_text(served: House) -> None:
    async with calling(served, MODEL, audio=False) as caller:
        caller.send("conversation.item.create", item=user("Salut"))
        caller.send("response.create", response={"output_modalities": ["text"]})
        events = await caller.until("response.done")
        assert events[-1]["response"]["status"] == "completed"
        assert "You said: Salut" in words(events)
        assert [role for role, _ in await told(served, caller.answer["session_id"])] == ["user", "assistant"]
    await silence(served)


async def test_openais_own_way_of_calling_is_answered_and_hung_up(served: House) -> None:
    caller = Caller()
    sdp = await caller.offer()
    answer = await served.client.post(
        "/v1/realtime/calls", params={"model": MODEL}, content=sdp, headers={"content-type": "application/sdp"}
    )
    assert answer.status_code == 201, answer.text
    assert answer.headers["content-type"].startswith("application/sdp")
    assert answer.headers["location"].startswith("/v1/realtime/calls/rtc_")
    await caller.accept(answer.text)
    assert (await caller.receive())["session"]["model"] == MODEL
    hangup = answer.headers["location"] + "/hangup"
    await served.add_user("caller-other")
    other = (await served.log_in("caller-other", "a good password")).json()["access_token"]
    refused = await served.anyone.post(hangup, headers={"authorization": f"Bearer {other}"})
    assert refused.status_code == 404
    assert (await served.client.post(hangup)).status_code == 200
    with anyio.fail_after(15):
        await caller.left.wait()
    assert (await served.client.post(hangup)).status_code == 404
    await caller.close()
    await silence(served)


async def test_a_client_secret_opens_a_call_that_a_form_sets_up(served: House) -> None:
    made = await served.client.post(
        "/v1/realtime/client_secrets", json={"session": {"type": "realtime", "model": MODEL}}
    )
    caller = Caller()
    form = {"sdp": (None, await caller.offer()), "session": (None, '{"type":"realtime","instructions":"Be short."}')}
    headers = {"authorization": f"Bearer {made.json()['value']}"}
    answer = await served.anyone.post("/v1/realtime/calls", files=form, headers=headers)
    assert answer.status_code == 201, answer.text
    await caller.accept(answer.text)
    session = (await caller.receive())["session"]
    assert (session["model"], session["instructions"]) == (MODEL, "Be short.")
    await caller.close()
    await silence(served)


@pytest.mark.parametrize(
    ("sdp", "why"),
    [
        ("rubbish", "data channel"),
        ("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n", "data channel"),
        ("v=0\r\nm=application\r\n", "cannot be read"),
        ("v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n", "cannot be"),
        ("a=candidate:1\r\n" * 100, "candidates"),
    ],
)
async def test_a_bad_offer_is_refused_and_leaves_nothing(served: House, sdp: str, why: str) -> None:
    answer = await served.client.post("/realtime/offer", json={"sdp": sdp, "type": "offer", "model": MODEL})
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "invalid_sdp"
    assert why in answer.json()["detail"]
    answer = await served.client.post(
        "/v1/realtime/calls", params={"model": MODEL}, content=sdp, headers={"content-type": "application/sdp"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_sdp"
    await silence(served)


async def test_who_may_not_call_is_told_before_anything_is_opened(served: House) -> None:
    caller = Caller()
    sdp = await caller.offer()
    body = {"sdp": sdp, "type": "offer", "model": MODEL}
    assert (await served.anyone.post("/realtime/offer", json=body)).status_code == 401
    assert (await served.client.post("/realtime/offer", json={**body, "model": "nobody/none"})).status_code == 404
    unknown = {**body, "session_id": "01890000-0000-7000-8000-000000000000"}
    assert (await served.client.post("/realtime/offer", json=unknown)).status_code == 404
    wrong = {**body, "session": {"type": "realtime", "nonsense": 1}}
    assert (await served.client.post("/realtime/offer", json=wrong)).status_code == 422
    plain = await served.client.post("/v1/realtime/calls", content=sdp, headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    await caller.close()
    await silence(served)


async def test_without_the_extra_the_answer_names_it(served: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    answer = await served.client.post("/realtime/offer", json={"sdp": "v=0", "type": "offer", "model": MODEL})
    assert answer.status_code == 503
    assert "--extra realtime" in answer.json()["detail"]


async def test_sessions_of_both_doors_are_counted_together(open_with: Opener, settings: Settings) -> None:
    house = await open_with(settings.model_copy(update={"realtime": RealtimeSettings(per_user=1)}))
    async with calling(house, MODEL, audio=False):
        second = Caller()
        body = {"sdp": await second.offer(), "type": "offer", "model": MODEL}
        answer = await house.client.post("/realtime/offer", json=body)
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_sessions")
        await second.close()
    await silence(house)


async def test_a_peer_that_never_comes_is_let_go(open_with: Opener, settings: Settings) -> None:
    house = await open_with(settings.model_copy(update={"realtime": RealtimeSettings(connect_seconds=0.3)}))
    caller = Caller()
    body = {"sdp": await caller.offer(), "type": "offer", "model": MODEL}
    assert (await house.client.post("/realtime/offer", json=body)).status_code == 200
    await silence(house)
    await caller.close()


async def test_a_silent_microphone_keeps_no_session_open(open_with: Opener, settings: Settings) -> None:
    house = await open_with(settings.model_copy(update={"realtime": RealtimeSettings(idle_seconds=1)}))
    house.services.realtime.voice = voices("nothing")
    async with calling(house, MODEL) as caller:
        events = await caller.until("error")
        assert events[-1]["error"]["code"] == "session_expired"
        with anyio.fail_after(15):
            await caller.left.wait()


async def test_fifty_peers_that_vanish_leave_nothing(
    open_with: Opener, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2)
    monkeypatch.setattr(aioice.ice, "CONSENT_FAILURES", 1)
    house = await open_with(settings)
    await vanished(house, 1)  # what is made once is made
    before = left_open(house)
    for _ in range(5):
        await vanished(house, 10)
    with anyio.fail_after(15):
        while left_open(house) > before:  # noqa: ASYNC110 - nobody rings
            await asyncio.sleep(0.05)


async def vanished(house: House, count: int) -> None:
    """So many call at once, and vanish."""
    callers = [Caller() for _ in range(count)]
    await asyncio.gather(*(gone(house, caller) for caller in callers))
    await silence(house)
    for caller in callers:
        await caller.close()


def left_open(house: House) -> int:
    """UDP sockets of this process, of both sides, and tasks of calls."""
    sockets = psutil.Process().net_connections("udp")
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    return len(sockets) + sum(name.startswith(("RTC", "Connection.", "Peer", "RealtimeCalls")) for name in names)


async def gone(house: House, caller: Caller) -> None:
    """Call, be greeted, and vanish."""
    body = {"sdp": await caller.offer(), "type": "offer", "model": MODEL}
    answer = await house.client.post("/realtime/offer", json=body)
    assert answer.status_code == 200, answer.text
    await caller.accept(answer.json()["sdp"])
    await caller.until("session.created")
    caller.vanish()


async def test_a_house_that_closes_ends_its_calls(settings: Settings) -> None:
    async with open_house(settings) as house:
        call = calling(house, MODEL)
        caller = await call.__aenter__()
        tasks = house.services.calls
    assert tasks.count == 0
    with anyio.fail_after(15):
        await caller.left.wait()
    await call.__aexit__(None, None, None)


# -- sound --


@pytest.fixture
async def talkative(open_with: Opener, settings: Settings) -> House:
    house = await open_with(settings)
    house.services.realtime.voice = voices("What is said")
    return house


async def test_what_the_microphone_hears_becomes_a_turn(talkative: House) -> None:
    seams: VoiceSeams = talkative.services.realtime.voice
    sound = at_24k(spoken_pcm())
    async with calling(talkative, MODEL, session={"type": "realtime", "output_modalities": ["text"]}) as caller:
        caller.microphone.say(sound)
        events = await caller.until("response.done")
        kinds = [event["type"] for event in events]
        assert kinds.index("input_audio_buffer.speech_started") < kinds.index("input_audio_buffer.committed")
        assert "You said: What is said" in words(events)
        assert isinstance(seams.listener, Ears)
        (heard,) = seams.listener.heard
        assert len(heard) > len(sound) * 0.7
        assert loudness(heard) > 2_000


async def test_sound_of_another_coding_is_refused_on_a_call(talkative: House) -> None:
    async with calling(talkative, MODEL) as caller:
        form = {"type": "audio/pcmu"}
        session = {"type": "realtime", "audio": {"input": {"format": form}}}
        caller.send("session.update", session=session, event_id="mine")
        error = (await caller.until("error"))[-1]["error"]
        assert (error["param"], error["event_id"]) == ("session.audio.input.format", "mine")
