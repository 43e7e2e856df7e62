"""When turns are over, over a socket: flite talks, Silero and Smart Turn tell, and webrtcvad where it was chosen."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings, SettingsError
from services.container import open_services
from services.realtime.voice import models, opening
from tests.fakes.hearing import accuracy
from tests.fakes.house import House, open_house
from tests.fakes.openai_door import reaching
from tests.fakes.providers import FakeProvider
from tests.fakes.realtime import Socket, talking
from tests.fakes.speech import need_voice_models
from tests.fakes.voices import Microphone, heard_in, quiet, said

pytestmark = pytest.mark.anyio

RULES, EARS = "agent/simple@offline/rules", "offline/pocketsphinx"
QUESTION, BEGUN = "What is the capital of France?", "I would like to know, um,"
SERVER, SEMANTIC = {"type": "server_vad"}, {"type": "semantic_vad"}
STARTED, STOPPED = "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"
WORDS = "conversation.item.input_audio_transcription.completed"


def with_ears(settings: Settings, **realtime: Any) -> Settings:
    heard = settings.transcription.model_copy(update={"model": EARS})
    chosen = settings.realtime.model_copy(update=realtime)
    return settings.model_copy(update={"transcription": heard, "realtime": chosen})


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    need_voice_models()
    async with open_house(with_ears(reaching(shared_settings, shared_provider))) as house:
        yield house


async def set_up(socket: Socket, detection: dict[str, Any]) -> None:
    audio = {"input": {"turn_detection": detection}}
    await socket.send("session.update", session={"type": "realtime", "audio": audio})
    told = await socket.receive()
    assert told["session"]["audio"]["input"]["turn_detection"].items() >= detection.items()


async def stopped_after(socket: Socket, detection: dict[str, Any], text: str = QUESTION) -> float:
    """Seconds from the last sound of a sentence until its turn is told to be over."""
    await set_up(socket, detection)
    async with Microphone(socket) as microphone:
        await microphone.say(said(text))
        ended = time.monotonic()
        microphone.stay_on()
        await socket.until(STOPPED)
        seconds = time.monotonic() - ended
        await socket.until("rate_limits.updated")
    return seconds


async def test_a_question_is_over_sooner_where_it_is_judged_than_where_silence_is_waited_for(served: House) -> None:
    async with talking(served, RULES) as socket:
        by_silence = await stopped_after(socket, SERVER)
    async with talking(served, RULES) as socket:
        judged = await stopped_after(socket, SEMANTIC)
    assert judged < by_silence


async def test_who_stops_to_think_is_waited_for_and_says_it_in_one_turn(served: House) -> None:
    async with talking(served, RULES) as socket, Microphone(socket) as microphone:
        await set_up(socket, SEMANTIC)
        await microphone.say(said(BEGUN) + quiet(1.0) + said(QUESTION))
        microphone.stay_on()
        events = await socket.until(WORDS)
    kinds = [event["type"] for event in events]
    assert (kinds.count(STARTED), kinds.count(STOPPED)) == (1, 1)
    assert accuracy(f"{BEGUN} {QUESTION}", heard_in(events)[0]) >= 0.6
    spoken = events[kinds.index(STOPPED)]["audio_end_ms"] - events[0]["audio_start_ms"]
    assert spoken > 3_000


async def test_by_silence_alone_the_same_are_two_turns(served: House) -> None:
    async with talking(served, RULES) as socket, Microphone(socket) as microphone:
        await set_up(socket, {**SERVER, "create_response": False})
        await microphone.say(said(BEGUN) + quiet(1.0) + said(QUESTION))
        microphone.stay_on()
        events = await socket.until(WORDS) + await socket.until(WORDS)
    assert [event["type"] for event in events].count(STOPPED) == 2


async def test_a_judge_that_fails_leaves_the_longest_silence(
    served: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_pcm: bytes) -> Future[bool]:
        verdict: Future[bool] = Future()
        verdict.set_exception(RuntimeError("no judge"))
        return verdict

    monkeypatch.setattr(served.services.realtime.voice.detectors, "_judge", broken)
    async with talking(served, RULES) as socket, Microphone(socket, pace=4) as microphone:
        await set_up(socket, {**SEMANTIC, "eagerness": "high"})
        await microphone.say(said(QUESTION, after=2.5))
        microphone.stay_on()
        events = await socket.until("rate_limits.updated")
    end = next(event["audio_end_ms"] for event in events if event["type"] == STOPPED)
    assert end >= 2_000 + 1_500  # all of the silence, after all of the question
    assert accuracy(QUESTION, heard_in(events)[0]) >= 0.85
    assert [record for record in caplog.records if vars(record).get("why") == "RuntimeError: no judge"]


async def test_models_that_cannot_be_loaded_are_an_error_and_the_session_stays_open(
    settings: Settings, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_voice_models()
    monkeypatch.setattr(models, "_SILERO_FILE", Path("no", "such.onnx"))
    async with open_house(with_ears(reaching(settings, provider))) as house, talking(house, RULES) as socket:
        assert socket.session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
        assert "You said: Bonjour" in await socket.ask("Bonjour")  # who writes needs no models
        for _ in range(2):
            await Microphone(socket).say(quiet(0.04))
            error = await socket.error()
            assert (error["code"], error["param"]) == (
                "voice_models_broken",
                "session.audio.input.turn_detection",
            )
        audio = {"input": {"turn_detection": None}}
        await socket.send("session.update", session={"type": "realtime", "audio": audio})
        assert (await socket.receive())["type"] == "session.updated"
        await Microphone(socket, pace=8).say(said(QUESTION))
        await socket.send("input_audio_buffer.commit")
        assert accuracy(QUESTION, heard_in(await socket.until(WORDS))[0]) >= 0.85


async def test_nothing_is_loaded_until_somebody_speaks(settings: Settings, provider: FakeProvider) -> None:
    need_voice_models()
    async with open_house(with_ears(reaching(settings, provider))) as house:
        told_by = house.services.realtime.voice.prepare.__self__  # type: ignore[union-attr]
        assert isinstance(told_by, models.VoiceModels)
        async with talking(house, RULES) as socket:
            await socket.ask("Bonjour")
            await socket.send("session.update", session={"type": "realtime"})
            await socket.receive()
            assert told_by._silero._loading is None
            await Microphone(socket).say(quiet(0.04))
            await socket.send("session.update", session={"type": "realtime"})
            await socket.receive()
            assert told_by._silero._loading is not None
            assert told_by._smart_turn._loading is None


async def test_who_leaves_while_a_turn_is_judged_leaves_nothing_behind(served: House) -> None:
    verdicts: list[Future[bool]] = []
    detectors = served.services.realtime.voice.detectors
    assert detectors is not None

    def never(_pcm: bytes) -> Future[bool]:
        verdicts.append(Future())
        return verdicts[-1]

    judge = vars(detectors)["_judge"]
    vars(detectors)["_judge"] = never
    try:
        async with talking(served, RULES) as socket:
            await set_up(socket, SEMANTIC)
            await Microphone(socket, pace=4).say(said(QUESTION, after=0.5))
            await socket.send("session.update", session={"type": "realtime"})
            await socket.until("session.updated")
    finally:
        vars(detectors)["_judge"] = judge
    assert len(verdicts) == 1
    async with asyncio.timeout(10):
        while served.services.realtime.count:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


# -- which of them --


async def test_webrtcvad_tells_turns_where_it_is_chosen(settings: Settings, provider: FakeProvider) -> None:
    need_voice_models()
    async with open_house(with_ears(reaching(settings, provider), vad="webrtc")) as house:
        assert house.services.realtime.voice.prepare is None
        for detection in (SERVER, SEMANTIC):
            async with talking(house, RULES) as socket:
                await set_up(socket, detection)
                async with Microphone(socket) as microphone:
                    await microphone.say(said(QUESTION))
                    microphone.stay_on()
                    events = await socket.until("rate_limits.updated")
                assert accuracy(QUESTION, heard_in(events)[0]) >= 0.85


@pytest.mark.parametrize(
    ("vad", "missing", "extra"), [("silero", "pipecat", "voice"), ("webrtc", "webrtcvad", "audio")]
)
async def test_what_is_chosen_and_not_installed_is_refused_at_the_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, vad: str, missing: str, extra: str
) -> None:
    hide(monkeypatch, missing)
    chosen = settings.model_copy(update={"realtime": settings.realtime.model_copy(update={"vad": vad})})
    with pytest.raises(SettingsError, match=f"REALTIME_VAD={vad} .*uv sync --extra {extra}"):
        async with open_services(chosen):
            pass


async def test_without_the_models_webrtcvad_tells_turns(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "pipecat")
    async with open_services(settings) as services:
        assert services.realtime.voice.prepare is None
        assert services.realtime.voice.detectors is not None
    hide(monkeypatch, "pipecat", "webrtcvad")
    async with open_services(settings) as services:
        assert services.realtime.voice.detectors is None


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if they were not installed."""
    for module in (models, opening):
        find = module.find_spec
        monkeypatch.setattr(module, "find_spec", lambda name, find=find: None if name in packages else find(name))
