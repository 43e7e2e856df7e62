"""The models that tell turns, as they are in pipecat's wheel: what they take for speech, and what for complete."""

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy
import pytest

from domain.errors import Unavailable
from services.realtime.schemas import AudioFormat, TurnDetection
from services.realtime.seams import Turned
from services.realtime.voice import models
from services.realtime.voice.activity import Activity, WebRtcActivity
from services.realtime.voice.models import VoiceModels
from services.realtime.voice.turns import VoiceTurns
from tests.fakes.speech import RATE, need_voice_models, spoken_pcm
from tests.fakes.voices import coded, quiet, said

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
PCM = AudioFormat(type="audio/pcm", rate=24000)
SERVER, SEMANTIC = TurnDetection(type="server_vad"), TurnDetection(type="semantic_vad")
VOICES = ("rms", "slt", "kal16")
SENTENCES = ("What is the capital of France?", "Please tell me the time.", "Where is the train station?")
#: Smart Turn listens to a speaker's melody, and flite has little of it: these it tells right by far, of rms and slt.
#: Others it does not: "The weather is nice today." of rms is never complete, "Tell me about the" always is, and what it
#: takes "I would like to know whether" for hangs on some milliseconds of silence. An "um" is always heard as one.
COMPLETE = ("What is the capital of France?", "My telephone number is three five.", "Can you help me, please?")
UNFINISHED = ("I would like to know, um,", "I want to ask you, um,", "Can you tell me, um,")


@pytest.fixture(scope="module")
def loaded() -> Iterator[VoiceModels]:
    need_voice_models()
    made = VoiceModels()
    asyncio.run(made.prepare(SEMANTIC))
    yield made
    made.close()


def speech(text: str, voice: str, loudness: float = 1.0) -> bytes:
    """PCM of 16 kHz that begins and ends with sound."""
    samples = numpy.frombuffer(spoken_pcm(text, voice), "<i2")
    loud = numpy.nonzero(numpy.abs(samples.astype(int)) > 300)[0]
    return (samples[loud[0] : loud[-1] + 1] * loudness).astype("<i2").tobytes()


def in_noise(pcm: bytes, level: float) -> bytes:
    """The same, in a room that is never silent."""
    samples = numpy.frombuffer(pcm, "<i2")
    noise = numpy.random.default_rng(7).standard_normal(len(samples)) * level
    return (samples + noise).clip(-32_768, 32_767).astype("<i2").tobytes()


def windows(activity: Activity, pcm: bytes) -> list[bool]:
    size = activity.window_ms * 32
    return [activity.is_speech(pcm[place : place + size]) for place in range(0, len(pcm) - size + 1, size)]


def told(turns: VoiceTurns, pcm: bytes) -> list[Turned]:
    """What is told of PCM of 16 kHz, which comes 40 ms at a time."""
    sound = coded(pcm)
    return [turned for place in range(0, len(sound), 1_920) for turned in turns.feed(sound[place : place + 1_920])]


def turns_of(activity: Activity, **wanted: object) -> VoiceTurns:
    return VoiceTurns(TurnDetection.model_validate({"type": "server_vad", **wanted}), PCM, 120_000, activity)


# -- who speaks --


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("text", SENTENCES)
def test_a_sentence_is_one_turn_from_its_first_sound_to_its_last(loaded: VoiceModels, voice: str, text: str) -> None:
    spoken = speech(text, voice)
    found = told(turns_of(loaded.activity(0.5)), quiet(1) + spoken + quiet(1))
    assert [turned.what for turned in found] == ["started", "paused", "stopped"]
    end = 1_000 + len(spoken) // 32
    assert 600 <= found[0].at_ms < 1_000  # kal16 begins so softly that it takes 200 ms: the padding holds it
    assert 500 <= found[-1].at_ms - end <= 560  # less than two windows after the silence that was asked for


@pytest.mark.parametrize("voice", VOICES)
def test_in_a_room_that_is_not_silent_a_turn_ends_hardly_later(loaded: VoiceModels, voice: str) -> None:
    spoken = speech(SENTENCES[0], voice)
    found = told(turns_of(loaded.activity(0.5)), in_noise(quiet(1) + spoken + quiet(1), 20))
    assert found[-1].what == "stopped"
    assert 500 <= found[-1].at_ms - 1_000 - len(spoken) // 32 <= 640


def noises() -> Iterator[tuple[str, "numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]"]]:
    """20 s of what is no speech, at a level at which webrtcvad takes it for speech."""
    dice, at = numpy.random.default_rng(7), numpy.arange(20 * RATE) / RATE
    for level in (3_000, 9_000):
        yield f"white noise of {level}", dice.standard_normal(len(at)) * level
    yield "a hum", sum(3_000 / part * numpy.sin(2 * numpy.pi * 50 * part * at) for part in (1, 2, 3, 5, 7))
    yield "a chord", sum(1_500 * numpy.sin(2 * numpy.pi * tone * at) for tone in (262, 330, 392, 523))
    clicks, keys = numpy.zeros(len(at)), numpy.zeros(len(at))
    for place in range(RATE, len(at) - RATE, RATE // 5):
        clicks[place : place + 40] = 20_000 * (-1) ** numpy.arange(40)
        keys[place : place + 800] = dice.standard_normal(800) * 8_000 * numpy.exp(-numpy.arange(800) / 150)
    yield "clicks", clicks
    yield "keys", keys


@pytest.mark.parametrize(("name", "sound"), [pytest.param(name, sound, id=name) for name, sound in noises()])
def test_what_wakes_webrtcvad_does_not_wake_silero(
    loaded: VoiceModels, name: str, sound: "numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]"
) -> None:
    pcm = sound.clip(-32_768, 32_767).astype("<i2").tobytes()
    assert told(turns_of(WebRtcActivity(0.5)), pcm)[0].what == "started"
    assert told(turns_of(loaded.activity(0.5)), pcm) == []


@pytest.mark.parametrize("voice", VOICES)
def test_a_soft_voice_is_heard(loaded: VoiceModels, voice: str) -> None:
    soft = in_noise(quiet(2) + speech(SENTENCES[2], voice, 0.02) + quiet(1), 3)  # a loudest sample of some 300
    found = told(turns_of(loaded.activity(0.5)), soft)
    assert [turned.what for turned in found] == ["started", "paused", "stopped"]


def test_a_threshold_is_a_probability(loaded: VoiceModels) -> None:
    soft = in_noise(quiet(2) + speech(SENTENCES[2], "rms", 0.01) + quiet(1), 3)
    heard = [sum(windows(loaded.activity(threshold), soft)) for threshold in (0.0, 0.5, 0.9, 1.0)]
    assert heard == sorted(heard, reverse=True)
    assert heard[0] > heard[2] > 0
    assert not any(windows(loaded.activity(0.0), in_noise(quiet(5), 300)))  # noise is none at any


@pytest.mark.parametrize("seconds", [0.5, 3, 30])
def test_after_a_long_silence_or_music_speech_is_heard_as_quickly(loaded: VoiceModels, seconds: float) -> None:
    at = numpy.arange(int(seconds * RATE)) / RATE
    hum = (sum(3_000 / part * numpy.sin(2 * numpy.pi * 50 * part * at) for part in (1, 2, 3, 5))).astype("<i2")
    for before in (quiet(seconds), hum.tobytes()):
        heard = windows(loaded.activity(0.5), before + speech(SENTENCES[2], "rms") + quiet(0.5))
        first = heard.index(True, int(seconds * 1_000 / 32) - 1)
        assert first * 32 - seconds * 1_000 < 130


def test_a_microphone_that_is_mute_costs_nothing(loaded: VoiceModels) -> None:
    activity, runs = loaded.activity(0.5), []
    model = activity._model  # type: ignore[attr-defined]

    class Counted:
        def run(self, *args: object) -> object:
            runs.append(1)
            return model.run(*args)

    activity._model = Counted()  # type: ignore[attr-defined]
    windows(activity, quiet(60))
    assert len(runs) < 20
    assert any(windows(activity, speech(SENTENCES[0], "rms")))


def test_sessions_share_a_model_and_nothing_else(loaded: VoiceModels) -> None:
    """From many threads at once each hears what it hears alone."""
    sounds = [in_noise(quiet(0.5) + speech(text, voice) + quiet(0.5), 20) for text in SENTENCES for voice in VOICES]
    alone = [windows(loaded.activity(0.5), sound) for sound in sounds]
    found: dict[int, list[bool]] = {}

    def hear(number: int) -> None:
        found[number] = windows(loaded.activity(0.5), sounds[number])

    threads = [threading.Thread(target=hear, args=(number,)) for number in range(len(sounds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(sounds))] == alone


def test_telling_turns_takes_little_of_a_core(loaded: VoiceModels) -> None:
    activity, sound = loaded.activity(0.5), in_noise(quiet(10), 20)
    before = time.thread_time()
    windows(activity, sound)
    assert time.thread_time() - before < 10 * 0.05  # 0.5 % of the sound's time, and a machine may be ten times as slow


# -- has all been said? --


def at_the_pause(loaded: VoiceModels, text: str, voice: str = "rms") -> bytes:
    """What a judge is given of somebody who says that."""
    asked: list[bytes] = []

    def judge(pcm: bytes) -> "Future[bool]":
        asked.append(pcm)
        return Future()

    told(VoiceTurns(SEMANTIC, PCM, 120_000, loaded.activity(0.5), judge), said(text, voice, after=1))
    [pcm] = asked
    return pcm


async def judged(loaded: VoiceModels, text: str, voice: str = "rms") -> bool:
    return await asyncio.wrap_future(loaded.judge(at_the_pause(loaded, text, voice)))


@pytest.mark.parametrize("voice", ["rms", "slt"])
async def test_what_is_finished_is_complete_and_what_is_not_is_not(loaded: VoiceModels, voice: str) -> None:
    assert [text for text in COMPLETE if not await judged(loaded, text, voice)] == []
    assert [text for text in UNFINISHED if await judged(loaded, text, voice)] == []


async def test_many_are_judged_at_once_and_each_by_its_own_sound(loaded: VoiceModels) -> None:
    texts = (COMPLETE[0], UNFINISHED[0]) * 5
    assert await asyncio.gather(*(judged(loaded, text) for text in texts)) == [True, False] * 5
    assert len(loaded._idle) <= models._AT_ONCE


async def test_the_loop_is_free_while_it_is_judged(loaded: VoiceModels) -> None:
    pcm = at_the_pause(loaded, COMPLETE[0])
    begun = time.thread_time()
    assert await asyncio.wrap_future(loaded.judge(pcm))
    assert time.thread_time() - begun < 0.03


async def test_whoever_closes_the_house_waits_for_no_judgement() -> None:
    need_voice_models()
    made = VoiceModels()
    asked = [made.judge(quiet(1)) for _ in range(8)]
    made.close()
    assert any(verdict.cancelled() for verdict in asked)


# -- loading --


async def test_the_models_are_loaded_once_whoever_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    need_voice_models()
    loads: list[int] = []
    load = models._load_silero
    monkeypatch.setattr(models, "_load_silero", lambda: loads.append(1) or load())  # type: ignore[func-returns-value]
    made = VoiceModels()
    await asyncio.gather(*(made.prepare(SERVER) for _ in range(20)))
    await made.prepare(SERVER)
    assert len(loads) == 1
    assert len(made._idle) == 0  # server VAD needs no judge
    made.close()


async def test_models_that_cannot_be_loaded_are_told_of_by_name_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need_voice_models()
    monkeypatch.setattr(models, "_SILERO_FILE", Path("no", "such.onnx"))
    made = VoiceModels()
    for _ in range(3):
        with pytest.raises(Unavailable) as told_of:
            await made.prepare(SEMANTIC)
        assert told_of.value.code == "voice_models_broken"
        assert "such.onnx" not in told_of.value.message
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "such.onnx" in vars(line)["why"]
    made.close()


async def test_who_leaves_while_the_models_are_loaded_stops_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    need_voice_models()
    may, load = threading.Event(), models._load_silero

    def when_it_may() -> Callable[[float], Activity]:
        may.wait(10)
        return load()

    monkeypatch.setattr(models, "_load_silero", when_it_may)
    made = VoiceModels()
    leaves, stays = (asyncio.create_task(made.prepare(SERVER)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait({leaves})
    may.set()
    async with asyncio.timeout(10):
        await stays
    made.close()


def test_pipecat_prints_nothing_and_leaves_asyncio_as_it_was() -> None:
    need_voice_models()
    program = """
        import asyncio
        before = asyncio.wait_for
        from services.realtime.schemas import TurnDetection
        from services.realtime.voice.models import VoiceModels
        made = VoiceModels()
        asyncio.run(made.prepare(TurnDetection(type="semantic_vad")))
        made.judge(bytes(32_000)).result()
        assert asyncio.wait_for is before
        made.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_packages_of_the_models_are_not_imported_at_the_start() -> None:
    program = "import app, sys; import services.realtime.voice.opening, services.realtime.voice.models as models\n"
    program += "models.installed()\n"
    program += "print([name for name in ('pipecat', 'onnxruntime', 'loguru', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
