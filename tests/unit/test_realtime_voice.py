"""The parts of a voice, each alone: telephone sound, turns, sentences, what was heard of an item, what is hushed."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future

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
    """Windows say themselves whether they are speech."""

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms

    def is_speech(self, window: bytes) -> bool:
        return window[len(window) // 2] > 0


class Jury:
    """Judges when it is told to: each that it was asked for is a future."""

    def __init__(self, *verdicts: bool | Exception) -> None:
        self.asked: list[tuple[bytes, Future[bool]]] = []
        self._verdicts = list(verdicts)

    def judge(self, pcm: bytes) -> Future[bool]:
        verdict: Future[bool] = Future()
        self.asked.append((pcm, verdict))
        if self._verdicts:
            tell(verdict, self._verdicts.pop(0))
        return verdict


def tell(verdict: "Future[bool]", said: bool | Exception) -> None:
    if isinstance(said, Exception):
        verdict.set_exception(said)
    else:
        verdict.set_result(said)


class Turns:
    """Feed it patterns of one window a letter: `x` is speech."""

    def __init__(self, window_ms: int, jury: Jury | None = None, **wanted: object) -> None:
        self.window_ms = window_ms
        detection = TurnDetection.model_validate({"type": "server_vad" if jury is None else "semantic_vad", **wanted})
        judge = None if jury is None else jury.judge
        form = AudioFormat(type="audio/pcm")
        self.detector = VoiceTurns(detection, form, 60_000, Marked(window_ms), judge)
        self.detector._incoming.feed = lambda sound: sound  # type: ignore[method-assign] # already at its rate

    def feed(self, pattern: str) -> list[tuple[str, int]]:
        """What is told; times are in windows."""
        size = self.window_ms * 32
        sound = b"".join((b"\x11" if letter == "x" else b"\0") * size for letter in pattern)
        found = [self.detector.feed(sound[start : start + 700]) for start in range(0, len(sound), 700)]
        return [(turned.what, turned.at_ms) for piece in found for turned in piece]


@pytest.fixture(params=[30, 32])
def ms(request: pytest.FixtureRequest) -> int:
    """How long a window is: webrtcvad's, and Silero's."""
    length: int = request.param
    return length


def test_a_turn_begins_with_what_came_before_it_and_ends_with_a_silence(ms: int) -> None:
    told = Turns(ms).feed("." * 20 + "x" * 20 + "." * 20)
    silence = {30: 17, 32: 16}[ms]  # windows: the first that hold 500 ms
    assert told == [("started", 19 * ms - 300), ("paused", 47 * ms), ("stopped", (40 + silence) * ms)]


def test_padding_and_silence_are_as_long_as_was_asked(ms: int) -> None:
    told = Turns(ms, prefix_padding_ms=0, silence_duration_ms=90).feed("." * 20 + "x" * 20 + "." * 20)
    assert told == [("started", 19 * ms), ("stopped", 43 * ms)]


def test_clicks_begin_no_turn_and_do_not_prolong_one(ms: int) -> None:
    assert Turns(ms).feed("." * 10 + "x..x...x" * 5) == []
    told = Turns(ms).feed("." * 20 + "x" * 10 + "....x....x....x....x")
    assert told[-1][0] == "stopped"


def test_a_second_turn_holds_nothing_of_the_first(ms: int) -> None:
    told = Turns(ms, silence_duration_ms=90).feed("." * 10 + "x" * 10 + "." * 4 + "x" * 10 + "." * 4)
    assert [what for what, _ in told] == ["started", "stopped", "started", "stopped"]
    assert told[2][1] == told[1][1]


def test_a_turn_without_an_end_is_cut(ms: int) -> None:
    told = Turns(ms).feed("." * 10 + "x" * 4_000)
    assert [what for what, _ in told][:3] == ["started", "stopped", "started"]
    assert told[1][1] - told[0][1] == pytest.approx(60_000, abs=2 * ms)


# -- turns that are judged --


def test_a_turn_that_is_judged_complete_ends_in_its_first_pause(ms: int) -> None:
    jury = Jury()
    turns = Turns(ms, jury)
    assert [what for what, _ in turns.feed("." * 30 + "x" * 20 + "." * 10)] == ["started", "paused"]
    [(pcm, verdict)] = jury.asked
    tell(verdict, True)
    assert turns.feed(".") == [("stopped", 61 * ms)]
    windows = [pcm[place] > 0 for place in range(0, len(pcm), ms * 32)]
    assert pcm.rstrip(b"\0").endswith(b"\x11" * 20 * ms * 32)
    assert (windows[0], windows[-1]) == (False, False)  # what came before it, and the pause, are in it
    assert len(jury.asked) == 1


def test_a_turn_that_is_not_complete_goes_on_and_is_judged_again_at_its_next_pause(ms: int) -> None:
    jury = Jury(False, True)
    turns = Turns(ms, jury)
    told = turns.feed("." * 20 + "x" * 20 + "." * 30 + "x" * 20 + "." * 10)
    assert [what for what, _ in told] == ["started", "paused", "stopped"]
    assert told[-1] == ("stopped", 97 * ms)
    first, second = (pcm for pcm, _ in jury.asked)
    assert second.startswith(first)  # all of the turn, not what came since


def test_a_judgement_that_comes_when_somebody_speaks_again_counts_for_nothing(ms: int) -> None:
    jury = Jury()
    turns = Turns(ms, jury)
    turns.feed("." * 20 + "x" * 20 + "." * 10 + "xx")
    assert jury.asked[0][1].cancelled()
    turns.feed("x" * 10 + "." * 10)
    assert turns.feed("x") == []
    tell(jury.asked[1][1], True)
    assert turns.feed("x" * 10) == []  # it was told when the first word of more was there
    assert len(jury.asked) == 2


@pytest.mark.parametrize(("eagerness", "seconds"), [("high", 2), ("medium", 4), ("auto", 4), (None, 4), ("low", 8)])
def test_a_turn_that_is_never_complete_ends_with_the_silence_of_its_eagerness(
    ms: int, eagerness: str | None, seconds: int
) -> None:
    jury = Jury(False, False)
    told = Turns(ms, jury, eagerness=eagerness).feed("." * 20 + "x" * 20 + "." * 300)
    assert [what for what, _ in told] == ["started", "paused", "stopped"]
    assert told[-1][1] - 40 * ms == pytest.approx(1_000 * seconds, abs=ms)
    assert len(jury.asked) == 2  # the second time when half of that is over


def test_a_click_just_where_a_pause_begins_puts_the_judgement_off_by_a_window(ms: int) -> None:
    told = Turns(ms, Jury(True)).feed("." * 20 + "x" * 20 + "." * 6 + "x" + "." * 10)
    assert told[-1] == ("stopped", 48 * ms)


def test_the_second_look_may_end_a_turn(ms: int) -> None:
    told = Turns(ms, Jury(False, True)).feed("." * 20 + "x" * 20 + "." * 300)
    assert told[-1][1] - 40 * ms == pytest.approx(2_000, abs=ms)


def test_a_judge_that_fails_is_logged_once_and_the_turn_ends_with_the_longest_silence(
    ms: int, caplog: pytest.LogCaptureFixture
) -> None:
    jury = Jury(*[RuntimeError("no judge")] * 4)
    told = Turns(ms, jury).feed(("." * 20 + "x" * 20 + "." * 140) * 2)
    assert [what for what, _ in told] == ["started", "paused", "stopped"] * 2
    assert told[2][1] - 40 * ms == pytest.approx(4_000, abs=ms)
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert vars(line)["why"] == "RuntimeError: no judge"


def test_a_buffer_that_is_committed_takes_what_is_being_judged_with_it(ms: int) -> None:
    jury = Jury()
    turns = Turns(ms, jury)
    turns.feed("." * 20 + "x" * 20 + "." * 10)
    turns.detector.reset()
    assert jury.asked[0][1].cancelled()
    turns.feed("." * 2 + "x" * 10 + "." * 10)
    assert b"\x11" * (11 * ms * 32) not in jury.asked[1][0]


def test_of_a_long_turn_only_the_last_seconds_are_judged(ms: int) -> None:
    jury = Jury(True)
    Turns(ms, jury).feed("." * 20 + "x" * 1_000 + "." * 10)
    assert len(jury.asked[0][0]) == 8 * 32_000


# -- sentences --

TEXTS = [
    ("Hello there, Ada. How are you today? Fine!", ["Hello there, Ada. ", "How are you today? ", "Fine!"]),
    ("Dr. Who met Mr. Smith at 3.5 km. They left.", ["Dr. Who met Mr. Smith at 3.5 km. ", "They left."]),
    ("Yes. No. Perhaps tomorrow.", ["Yes. No. Perhaps tomorrow."]),
    ("The first line\nThe second one", ["The first line\n", "The second one"]),
    ("x" * 700, ["x" * 300, "x" * 300, "x" * 100]),
]


def pieces_of(text: str, size: int, *, hurry: bool = False) -> list[str]:
    """How it comes out when it goes in so many characters at a time."""
    sentences = Sentences(hurry=hurry)
    found = [one for start in range(0, len(text), size) for one in sentences.feed(text[start : start + size])]
    return [*found, rest] if (rest := sentences.end()) else found


@pytest.mark.parametrize(("text", "wanted"), TEXTS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_text_is_spoken_in_sentences_however_it_comes(text: str, wanted: list[str], size: int) -> None:
    found = pieces_of(text, size)
    assert "".join(found) == text
    assert found == wanted


FIRST_PIECES = [
    (
        "Of course I can tell you, Ada, that Paris has two million people. And Rome, which is older, has three.",
        [
            "Of course I can tell you, ",
            "Ada, that Paris has two million people. ",
            "And Rome, which is older, has three.",
        ],
    ),
    ("Of course I can tell you, Ada. And more of it, whenever you like to hear it, and how.", None),
    (
        "In some 1,000,000 years, which is a very long time indeed, nobody will be here to answer that.",
        ["In some 1,000,000 years, "],
    ),
    ("Yes, no, or perhaps - I do not know what to say about a question like that one.", ["Yes, no, or perhaps - "]),
    ("This is quite a long sentence but it is written in one go and has no place to breathe at all.", None),
]


@pytest.mark.parametrize(("text", "wanted"), FIRST_PIECES)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_long_first_sentence_is_begun_before_it_is_whole(text: str, wanted: list[str] | None, size: int) -> None:
    found = pieces_of(text, size, hurry=True)
    assert "".join(found) == text
    patient = pieces_of(text, size)
    if wanted is None:
        assert found == patient
    else:
        assert found[: len(wanted)] == wanted
        assert found[0] + found[1] == patient[0]


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
