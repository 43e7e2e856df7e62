"""A realtime conversation without a house: fakes hear, scripts answer, and every event is of OpenAI's shape."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest

from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.enums import FinishReason
from domain.errors import RouteurError, Unavailable, UpstreamFailure
from domain.targets import target_of
from services.realtime.answers import Question
from services.realtime.conversation import Ending, RealtimeConversation
from services.realtime.line import Terms
from services.realtime.outbox import Outbox
from services.realtime.response import CallPiece, Piece, TextPiece
from services.realtime.schemas import AudioFormat, Transcription, TurnDetection
from services.realtime.seams import Heard, Turned, VoiceSeams
from services.realtime.session_config import SessionConfig
from services.realtime.waiting import Ended
from tests.fakes.realtime import SERVER_EVENT, user

pytestmark = pytest.mark.anyio
CALLER = Principal(UserId("u"), "ada", frozenset({Scope.REALTIME}), CredentialKind.API_KEY, "k")
SILENCE, SPEECH = b"\x00\x00" * 2_400, b"\x11\x11" * 2_400  # 100 ms each


class ScriptedAnswer:
    """Says its pieces; with `hangs` it then waits for somebody to cancel it."""

    run_id = "run"

    def __init__(self, pieces: list[Piece], *, hangs: bool = False) -> None:
        self.ended = Ended(finish=FinishReason.STOP)
        self._pieces = pieces
        self._stop = asyncio.Event()
        if not hangs:
            self._stop.set()

    def cancel(self, *, spoken_over: bool = False) -> None:
        self.ended = Ended(cancelled=True)
        self._stop.set()

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        for piece in self._pieces:
            yield [piece]
        await self._stop.wait()


class Script:
    def __init__(self, *answers: ScriptedAnswer) -> None:
        self._answers = list(answers)
        self.asked: list[Question] = []

    async def begin(self, question: Question) -> ScriptedAnswer:
        self.asked.append(question)
        return self._answers.pop(0)


class Ears:
    """Hears what it is told to have heard."""

    def __init__(self, *texts: str | RouteurError) -> None:
        self._texts = list(texts)

    async def listen(self, sound: bytes, form: AudioFormat, wanted: Transcription | None, caller: Principal) -> Heard:
        text = self._texts.pop(0)
        if isinstance(text, RouteurError):
            raise text
        return Heard(text, len(sound) / 48_000)


class Loud:
    """Whatever is not silence is speech."""

    def __init__(self, _wanted: TurnDetection, _form: AudioFormat) -> None:
        self._at, self._speaking = 0, False

    def feed(self, sound: bytes) -> list[Turned]:
        at, self._at = self._at, self._at + len(sound) // 48
        loud = any(sound)
        if loud == self._speaking:
            return []
        self._speaking = loud
        return [Turned("started" if loud else "stopped", at)]

    def reset(self) -> None:
        self._speaking = False


class Talk:
    """A conversation and everything that it has told."""

    def __init__(self, script: Script, voice: VoiceSeams | None = None, model: str = "openai/m") -> None:
        voice = voice or VoiceSeams()
        config = SessionConfig("s", model, target_of(model), voice)

        async def history() -> list[dict[str, Any]]:
            return []

        def describe(error: RouteurError) -> dict[str, Any]:
            return {"type": "x", "code": error.code, "message": error.message, "param": error.param}

        terms = Terms(CALLER, script, history, describe, voice)
        self.conversation = RealtimeConversation(config, terms, Outbox(1_000_000))

    async def hear(self, kind: str, **more: Any) -> None:
        await self.conversation.hear(orjson.dumps({"type": kind, **more}).decode())

    async def sound(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self.hear("input_audio_buffer.append", audio=base64.b64encode(piece).decode())

    async def until(self, kind: str) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        async with asyncio.timeout(5):
            while kind not in [event["type"] for event in told]:
                told += map(orjson.loads, await self.conversation.outbox.take())
        for event in told:
            SERVER_EVENT.validate_python(event)
        return told


def types(told: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in told]


async def test_a_committed_turn_becomes_an_item_and_its_words_are_asked() -> None:
    script = Script(ScriptedAnswer([TextPiece("msg_1", "Hello")]))
    talk = Talk(script, VoiceSeams(listener=Ears("Good morning")))
    await talk.sound(SPEECH)
    await talk.hear("input_audio_buffer.commit")
    told = await talk.until("conversation.item.input_audio_transcription.completed")
    assert types(told) == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
    ]
    assert told[-1]["usage"] == {"type": "duration", "seconds": 0.1}
    await talk.hear("response.create")
    await talk.until("rate_limits.updated")
    assert script.asked[0].messages == [{"role": "user", "content": "Good morning"}]


async def test_an_answer_waits_for_the_words_of_a_turn() -> None:
    """Clients commit and ask in one breath."""
    script = Script(ScriptedAnswer([TextPiece("msg_1", "Hello")]))
    talk = Talk(script, VoiceSeams(listener=Ears("Good morning")))
    await talk.sound(SPEECH)
    await talk.hear("input_audio_buffer.commit")
    await talk.hear("response.create")
    told = types(await talk.until("rate_limits.updated"))
    assert told.index("conversation.item.input_audio_transcription.completed") < told.index("response.created")
    assert script.asked[0].messages == [{"role": "user", "content": "Good morning"}]


async def test_an_empty_transcript_is_never_answered() -> None:
    talk = Talk(Script(), VoiceSeams(listener=Ears("")))
    await talk.sound(SPEECH)
    await talk.hear("input_audio_buffer.commit")
    await talk.hear("response.create")
    told = await talk.until("error")
    assert told[-1]["error"]["code"] == "conversation_empty"


async def test_turns_that_the_server_hears_are_answered_and_silence_is_not() -> None:
    script = Script(ScriptedAnswer([TextPiece("msg_1", "Hello")]))
    talk = Talk(script, VoiceSeams(listener=Ears("Hi", "  "), detectors=Loud))
    await talk.sound(SILENCE, SPEECH, SILENCE)
    told = await talk.until("rate_limits.updated")
    assert types(told)[:3] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]
    assert (told[0]["audio_start_ms"], told[1]["audio_end_ms"]) == (100, 200)
    assert told[0]["item_id"] == told[1]["item_id"] == told[2]["item_id"]
    await talk.sound(SPEECH, SILENCE)
    await talk.until("conversation.item.input_audio_transcription.completed")
    assert not talk.conversation.answering
    assert len(script.asked) == 1


async def test_speech_interrupts_the_answer() -> None:
    script = Script(ScriptedAnswer([TextPiece("msg_1", "Once upon")], hangs=True))
    talk = Talk(script, VoiceSeams(listener=Ears("Stop"), detectors=Loud))
    await talk.hear("conversation.item.create", item=user("Tell me a story"))
    await talk.hear("response.create")
    await talk.until("response.output_text.delta")
    await talk.sound(SPEECH)
    told = await talk.until("response.done")
    assert told[-1]["type"] in ("response.done", "rate_limits.updated")
    response = next(event["response"] for event in told if event["type"] == "response.done")
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}


async def test_what_tells_turns_is_prepared_before_the_first_sound_and_not_for_words() -> None:
    prepared: list[str] = []

    async def prepare(wanted: TurnDetection) -> None:
        prepared.append(wanted.type)

    script = Script(ScriptedAnswer([TextPiece("msg_1", "Hello")]))
    talk = Talk(script, VoiceSeams(listener=Ears("Hi"), detectors=Loud, prepare=prepare))
    await talk.hear("conversation.item.create", item=user("Hello"))
    await talk.hear("input_audio_buffer.clear")
    assert prepared == ["server_vad"]
    await talk.sound(SILENCE, SPEECH, SILENCE)
    await talk.until("rate_limits.updated")
    assert prepared == ["server_vad"]
    for detection in (None, {"type": "semantic_vad"}):
        audio = {"input": {"turn_detection": detection}}
        await talk.hear("session.update", session={"type": "realtime", "audio": audio})
        await talk.sound(SILENCE)
    assert prepared == ["server_vad", "semantic_vad"]


async def test_what_cannot_be_prepared_is_an_error_for_each_sound_and_the_session_goes_on() -> None:
    async def prepare(_wanted: TurnDetection) -> None:
        raise Unavailable("It is broken.", code="voice_models_broken")

    script = Script(ScriptedAnswer([TextPiece("msg_1", "Hello")]))
    talk = Talk(script, VoiceSeams(listener=Ears(), detectors=Loud, prepare=prepare))
    await talk.sound(SPEECH, SPEECH)
    told = await talk.until("error")
    assert [event["error"]["code"] for event in told] == ["voice_models_broken"] * 2
    await talk.hear("conversation.item.create", item=user("Hello"))
    await talk.hear("response.create")
    await talk.until("response.done")


async def test_words_that_cannot_be_had_are_told_and_not_answered() -> None:
    talk = Talk(Script(), VoiceSeams(listener=Ears(UpstreamFailure("No ears.")), detectors=Loud))
    await talk.sound(SPEECH, SILENCE)
    told = await talk.until("conversation.item.input_audio_transcription.failed")
    assert told[-1]["error"]["message"] == "No ears."
    assert not talk.conversation.answering


@pytest.mark.parametrize(
    ("audio", "code"),
    [("no base64!", "invalid_audio"), ("AAA=", None), ("AA==", "invalid_audio"), ("A" * 16_000_000, "audio_too_large")],
)
async def test_sound_is_checked(audio: str, code: str | None) -> None:
    talk = Talk(Script(), VoiceSeams(listener=Ears()))
    await talk.hear("input_audio_buffer.append", audio=audio)
    await talk.hear("input_audio_buffer.commit")
    told = await talk.until("error")
    assert [event["error"]["code"] for event in told] == [
        *([code] if code else []),
        "input_audio_buffer_commit_empty",
    ]


async def test_the_buffer_is_bounded_and_can_be_cleared() -> None:
    talk = Talk(Script(), VoiceSeams(listener=Ears()))
    for _ in range(30):
        await talk.sound(b"\x00" * 480_000)
    await talk.sound(b"\x00" * 480_000)
    assert (await talk.until("error"))[-1]["error"]["code"] == "audio_buffer_full"
    await talk.hear("input_audio_buffer.clear")
    assert types(await talk.until("input_audio_buffer.cleared")) == ["input_audio_buffer.cleared"]
    await talk.sound(SPEECH)


async def test_words_and_calls_of_one_answer_are_items_of_their_own() -> None:
    pieces: list[Piece] = [
        TextPiece("msg_1", "Let me see."),
        CallPiece("call_1", "f", '{"a"'),
        CallPiece("call_2", "g", "{}"),
        CallPiece("call_1", "f", ":1}"),
    ]
    talk = Talk(Script(ScriptedAnswer(pieces)))
    await talk.hear("conversation.item.create", item=user("x"))
    await talk.hear("response.create")
    told = await talk.until("rate_limits.updated")
    response = next(event["response"] for event in told if event["type"] == "response.done")
    assert [item["type"] for item in response["output"]] == ["message", "function_call", "function_call"]
    assert [item.get("arguments") for item in response["output"]] == [None, '{"a":1}', "{}"]
    done = [event["output_index"] for event in told if event["type"] == "response.output_item.done"]
    assert done == [0, 1, 2]
    names = types(told)
    assert names.index("response.output_text.done") < names.index("response.function_call_arguments.delta")
    for call_id in ("call_1", "call_2"):
        output = {"type": "function_call_output", "call_id": call_id, "output": "1"}
        await talk.hear("conversation.item.create", item=output)
    assert "error" not in types(await talk.until("conversation.item.done"))


async def test_the_end_stops_what_goes_on() -> None:
    talk = Talk(Script(ScriptedAnswer([TextPiece("msg_1", "Once")], hangs=True)))
    await talk.hear("conversation.item.create", item=user("x"))
    await talk.hear("response.create")
    await talk.until("response.output_text.delta")
    talk.conversation.end(Ending(1001))
    await talk.conversation.aclose()
    assert not talk.conversation.answering
    assert await talk.conversation.outbox.take() == []


async def test_a_full_outbox_holds_back_whoever_fills_it() -> None:
    outbox = Outbox(100)
    outbox.put({"type": "x" * 200})
    waiting = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert len(await outbox.take()) == 1
    await asyncio.wait_for(waiting, 1)
