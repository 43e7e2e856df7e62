"""The parts of a voice, each alone: telephone sound, turns, sentences, what was heard of an item, what is hushed."""

import asyncio
from collections.abc import AsyncGenerator

import numpy
import pytest

from core.audio import telephony
from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.errors import UpstreamFailure
from services.realtime.items import Item
from services.realtime.outbox import Outbox
from services.realtime.response import CallPiece, Event, ResponseEvents, TextPiece
from services.realtime.schemas import AudioFormat, OutputAudio, TurnDetection
from services.realtime.voice.sentences import Sentences
from services.realtime.voice.spoken import SpokenAnswer
from services.realtime.voice.turns import VoiceTurns

pytestmark = pytest.mark.anyio
CALLER = Principal(UserId("u"), "ada", frozenset({Scope.REALTIME}), CredentialKind.API_KEY, "k")
LAWS: tuple[telephony.Law, ...] = ("mu", "a")
PCM16 = numpy.arange(-32_768, 32_768, dtype="<i2")


# -- telephone sound --


@pytest.mark.parametrize("law", LAWS)
def test_every_sample_comes_back_within_a_step_of_its_loudness(law: telephony.Law) -> None:
    back = numpy.frombuffer(telephony.decode(telephony.encode(PCM16.tobytes(), law), law), "<i2").astype(int)
    wrong = numpy.abs(back - PCM16)
    inside = numpy.abs(PCM16.astype(int)) < 32_000  # the loudest code is a little less than the loudest sample
    assert (wrong[inside] <= numpy.maximum(numpy.abs(PCM16[inside].astype(int)) / 16, 8)).all()
    assert (numpy.diff(back) >= 0).all()


@pytest.mark.parametrize(("law", "silence"), [("mu", 0xFF), ("a", 0xD5)])
def test_codes_are_those_of_the_standard(law: telephony.Law, silence: int) -> None:
    assert telephony.encode(b"\x00\x00\x08\x00"[: 2 if law == "mu" else 4], law)[-1] == silence
    every = bytes(range(256))
    back = telephony.encode(telephony.decode(every, law), law)
    assert sum(one != other for one, other in zip(every, back, strict=True)) == (1 if law == "mu" else 0)  # two zeros
    loudest = {"mu": (0x80, 32_124), "a": (0xAA, 32_256)}[law]
    assert int.from_bytes(telephony.decode(bytes([loudest[0]]), law), "little", signed=True) == loudest[1]


# -- turns --


class Marked:
    """Frames say themselves whether they are speech."""

    def is_speech(self, frame: bytes, _rate: int) -> bool:
        return frame[480] > 0 or frame[481] > 0


def turns(pattern: str, **wanted: object) -> list[tuple[str, int]]:
    """What is told of 30 ms a letter: `x` is speech."""
    detection = TurnDetection.model_validate({"type": "server_vad", **wanted})
    detector = VoiceTurns(detection, AudioFormat(type="audio/pcm"), 60_000, Marked())
    detector._incoming.feed = lambda sound: sound  # type: ignore[method-assign] # already at the detector's rate
    sound = b"".join((b"\x11\x11" if letter == "x" else b"\0\0") * 480 for letter in pattern)
    found = [detector.feed(sound[start : start + 700]) for start in range(0, len(sound), 700)]
    return [(turned.what, turned.at_ms) for piece in found for turned in piece]


def test_a_turn_begins_with_what_came_before_it_and_ends_with_a_silence() -> None:
    told = turns("." * 20 + "x" * 20 + "." * 20)
    assert told == [("started", 270), ("paused", 1_410), ("stopped", 1_710)]


def test_padding_and_silence_are_as_long_as_was_asked() -> None:
    told = turns("." * 20 + "x" * 20 + "." * 20, prefix_padding_ms=0, silence_duration_ms=90)
    assert told == [("started", 570), ("stopped", 1_290)]


def test_clicks_begin_no_turn_and_do_not_prolong_one() -> None:
    assert turns("." * 10 + "x..x...x" * 5) == []
    told = turns("." * 20 + "x" * 10 + "....x....x....x....x")
    assert told[-1][0] == "stopped"


def test_a_second_turn_holds_nothing_of_the_first() -> None:
    told = turns("." * 10 + "x" * 10 + "." * 4 + "x" * 10 + "." * 4, silence_duration_ms=90)
    assert [what for what, _ in told] == ["started", "stopped", "started", "stopped"]
    assert told[2][1] == told[1][1]


def test_a_turn_without_an_end_is_cut() -> None:
    told = turns("." * 10 + "x" * 4_000)
    assert [what for what, _ in told][:3] == ["started", "stopped", "started"]
    assert told[1][1] - told[0][1] == pytest.approx(60_000, abs=60)


# -- sentences --

TEXTS = [
    ("Hello there, Ada. How are you today? Fine!", ["Hello there, Ada. ", "How are you today? ", "Fine!"]),
    ("Dr. Who met Mr. Smith at 3.5 km. They left.", ["Dr. Who met Mr. Smith at 3.5 km. ", "They left."]),
    ("Yes. No. Perhaps tomorrow.", ["Yes. No. Perhaps tomorrow."]),
    ("The first line\nThe second one", ["The first line\n", "The second one"]),
    ("x" * 700, ["x" * 300, "x" * 300, "x" * 100]),
]


@pytest.mark.parametrize(("text", "wanted"), TEXTS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_text_is_spoken_in_sentences_however_it_comes(text: str, wanted: list[str], size: int) -> None:
    sentences = Sentences()
    found = [one for start in range(0, len(text), size) for one in sentences.feed(text[start : start + size])]
    found = [*found, rest] if (rest := sentences.end()) else found
    assert "".join(found) == text
    assert found == wanted


# -- what was heard --

HEARD = [(0, ""), (500, "One two"), (1_000, "One two three."), (1_500, "One two three. Four"), (9_999, None)]


@pytest.mark.parametrize(("at_ms", "text"), HEARD)
def test_an_item_keeps_the_words_that_were_heard(at_ms: int, text: str | None) -> None:
    whole = "One two three. Four five six."
    item = Item("i", {"content": [{"type": "output_audio", "transcript": whole}]}, marks=[(15, 1_000), (29, 2_000)])
    assert item.cut(at_ms) == (whole if text is None else text)
    assert item.spoken_ms == min(at_ms, 2_000)
    assert item.cut(at_ms) == item.shown["content"][0]["transcript"]


def test_an_outbox_drops_what_nobody_is_to_hear() -> None:
    outbox = Outbox(1_000)
    for number in range(40):
        outbox.put({"type": "x", "n": number}, "sound" if number % 2 else None)
    assert outbox.full
    outbox.drop("sound")
    outbox.close()
    assert len(asyncio.run(outbox.take())) == 20


# -- speaking --


class Mouth:
    """A piece of sound for each letter; waits at the word that it is told to wait for."""

    def __init__(self, wait_at: str = "", fail_at: str = "") -> None:
        self.reached = asyncio.Event()
        self._wait, self._fail = wait_at, fail_at

    async def speak(self, sentence: str, _wanted: OutputAudio, _caller: Principal) -> AsyncGenerator[bytes]:
        if self._fail and self._fail in sentence:
            raise UpstreamFailure("It broke.")
        for letter in sentence.encode():
            yield bytes([letter, 0])
        if self._wait and self._wait in sentence:
            self.reached.set()
            await asyncio.Event().wait()


def spoken(mouth: Mouth) -> tuple[SpokenAnswer, list[Event], ResponseEvents]:
    told: list[Event] = []
    events = ResponseEvents(told.append, lambda _: None, {})
    return SpokenAnswer(mouth, OutputAudio(), CALLER, events, Outbox(1_000_000)), told, events


def transcript(told: list[Event]) -> str:
    return "".join(event["delta"] for event in told if event["type"] == "response.output_audio_transcript.delta")


async def test_the_first_sentence_is_heard_while_the_rest_is_written() -> None:
    mouth = Mouth(wait_at="first")
    answer, told, _ = spoken(mouth)
    answer.add(TextPiece("m", "This is the first one. And this "))
    async with asyncio.timeout(5):
        await mouth.reached.wait()
    assert transcript(told) == "This is the first one. "
    await answer.aclose()
    assert answer.unsaid == {"m": "This is the first one. "}


async def test_words_and_calls_keep_their_order() -> None:
    answer, told, _ = spoken(Mouth())
    answer.add(TextPiece("m", "I shall look"))
    answer.add(CallPiece("c", "weather", "{}"))
    await answer.finish()
    assert transcript(told) == "I shall look"
    names = [event["type"] for event in told]
    assert names.index("response.output_audio.done") < names.index("response.function_call_arguments.delta")
    assert answer.unsaid == {}


async def test_a_voice_that_breaks_fails_whoever_waits_for_it() -> None:
    answer, _, _ = spoken(Mouth(fail_at="second"))
    answer.add(TextPiece("m", "This is the first one. This is the second one. "))
    with pytest.raises(UpstreamFailure):
        await answer.finish()
    await answer.aclose()


async def test_after_a_hush_nothing_is_said() -> None:
    mouth = Mouth(wait_at="first")
    answer, told, _ = spoken(mouth)
    answer.add(TextPiece("m", "This is the first one. And the second. "))
    await mouth.reached.wait()
    answer.hush()
    before = len(told)
    answer.add(TextPiece("m", "And a third one, too. ", done=True))
    await answer.room()
    await answer.finish()
    assert len(told) == before
