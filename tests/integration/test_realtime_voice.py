"""Realtime sessions by voice: flite talks, pocketsphinx hears, flite answers, and OpenAI's own client reads along."""

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import numpy
import orjson
import pytest
from websockets.exceptions import InvalidStatus

from config.settings import Settings
from tests.fakes.hearing import accuracy
from tests.fakes.house import House, open_house
from tests.fakes.openai_door import reaching, sdk
from tests.fakes.providers import TEXT, FakeProvider, Reply
from tests.fakes.realtime import SERVER_EVENT, Socket, quiet, talking, user
from tests.fakes.speech import RATE, need_speech
from tests.fakes.voices import PER_SECOND, Microphone, coded, heard_in, plain, said, sound_of, transcript_of
from tests.fakes.voices import quiet as silence

pytestmark = pytest.mark.anyio

AGENT, RULES = "agent/simple@openai/fake-large", "agent/simple@offline/rules"
EARS, VOICE = "offline/pocketsphinx", "offline/flite"
QUESTION, GREETING = "What is the capital of France?", "Good morning."
FORMS = ("audio/pcm", "audio/pcmu", "audio/pcma")
TURN_ORDER = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "conversation.item.input_audio_transcription.delta",
    "conversation.item.input_audio_transcription.completed",
]
ANSWER_ORDER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
    "rate_limits.updated",
]


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    need_speech()
    settings = reaching(shared_settings, shared_provider)
    spoken = settings.realtime.model_copy(update={"output": "audio", "speech_model": VOICE})
    heard = settings.transcription.model_copy(update={"model": EARS})
    async with open_house(settings.model_copy(update={"realtime": spoken, "transcription": heard})) as house:
        yield house


def first_of_each(events: list[dict[str, Any]]) -> list[str]:
    """The types in the order in which each came first; sentences repeat words and sound in turn."""
    return list(dict.fromkeys(event["type"] for event in events))


def one(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    found = [event for event in events if event["type"] == kind]
    assert len(found) == 1, [event["type"] for event in events]
    return found[0]


async def set_up(socket: Socket, **audio: Any) -> None:
    await socket.send("session.update", session={"type": "realtime", "audio": audio})
    assert (await socket.receive())["type"] == "session.updated"


async def asked(socket: Socket, text: str = QUESTION, form: str = "audio/pcm") -> list[dict[str, Any]]:
    """The events of a turn and its answer; the server hears when the turn is over."""
    async with Microphone(socket, form) as microphone:
        await microphone.say(said(text))
        microphone.stay_on()
        return await socket.until("rate_limits.updated")


async def lines(house: House, session_id: str) -> list[tuple[str, str]]:
    answer = await house.client.get(f"/api/sessions/{session_id}/messages")
    return [(line["role"], line["content"]) for line in answer.json()["messages"]]


def loud_seconds(pcm: bytes, rate: int) -> float:
    """How much of it is sound."""
    samples = numpy.abs(numpy.frombuffer(pcm, "<i2").astype(int))
    whole = len(samples) // (rate // 50) * (rate // 50)
    return float((samples[:whole].reshape(-1, rate // 50).max(axis=1) > 500).sum()) / 50


# -- a conversation --


async def test_the_official_client_talks_with_an_agent(served: House) -> None:
    """As stock clients do: the server tells turns, two of them, and the agent remembers."""
    async with sdk(served) as client, client.realtime.connect(model=RULES) as connection:
        session = (await connection.recv()).session  # type: ignore[union-attr]
        assert session.output_modalities == ["audio"]
        for question in (QUESTION, "Please tell me the time."):
            sound, events = coded(said(question, after=1.2)), []
            for start in range(0, len(sound), 4_800):
                await connection.input_audio_buffer.append(
                    audio=base64.b64encode(sound[start : start + 4_800]).decode()
                )
                await asyncio.sleep(0.1)
            async with asyncio.timeout(15):
                while not events or events[-1]["type"] != "rate_limits.updated":
                    event = (await connection.recv()).to_dict()
                    SERVER_EVENT.validate_python(event)
                    events.append(event)
            assert first_of_each(events) == list(dict.fromkeys([*TURN_ORDER, *ANSWER_ORDER]))
            [heard] = heard_in(events)
            assert accuracy(question, heard) >= 0.85
            told = transcript_of(events)
            assert told.endswith(f"You said: {heard}")
            pcm = sound_of(events)
            assert 0.03 < loud_seconds(pcm, 24_000) / len(told) < 0.12  # seconds for each letter
    stored = await lines(served, session.id)
    assert [role for role, _ in stored] == ["user", "assistant"] * 2
    assert stored[-1][1] == told


async def test_an_answer_in_sound_has_every_event_in_its_place(served: House, provider: FakeProvider) -> None:
    async with talking(served, AGENT) as socket:
        turn = await asked(socket)
    provider.ledger.clear()
    place = next(at for at, event in enumerate(turn) if event["type"] == "response.created")
    assert [event["type"] for event in turn[:place]] == TURN_ORDER
    started, stopped = turn[0], turn[1]
    assert started["audio_start_ms"] < 300  # what came before is part of the turn
    assert stopped["audio_end_ms"] - started["audio_start_ms"] > 1_500
    assert {event["item_id"] for event in turn[:3]} == {turn[3]["item"]["id"]}
    answer = turn[place:]
    assert first_of_each(answer) == ANSWER_ORDER
    done = one(answer, "response.done")["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": TEXT}]
    assert transcript_of(answer) == TEXT
    assert one(answer, "response.content_part.done")["part"] == {"type": "audio", "transcript": TEXT}
    assert all(
        len(base64.b64decode(event["delta"])) <= 24_000 for event in answer if "output_audio.delta" in event["type"]
    )


@pytest.mark.parametrize("form", FORMS)
async def test_sound_is_taken_and_given_in_every_coding(served: House, form: str) -> None:
    async with talking(served, RULES) as socket:
        coding = {"type": form, "rate": 24000} if form == "audio/pcm" else {"type": form}
        await set_up(socket, input={"format": coding}, output={"format": coding})
        events = await asked(socket, GREETING, form)  # by telephone, these ears understand little more
    assert accuracy(GREETING, heard_in(events)[0]) >= 0.85
    rate = 24_000 if form == "audio/pcm" else 8_000
    seconds = loud_seconds(plain(sound_of(events), form), rate)
    assert 0.03 < seconds / len(transcript_of(events)) < 0.12
    item = one(events, "response.done")["response"]["output"][0]
    assert len(sound_of(events)) / PER_SECOND[form] > seconds
    assert item["status"] == "completed"


async def test_a_client_may_say_itself_when_a_turn_is_over(served: House) -> None:
    async with talking(served, AGENT) as socket:
        await set_up(socket, input={"turn_detection": None})
        await Microphone(socket, pace=4).say(said(QUESTION))
        await socket.send("input_audio_buffer.commit")
        await socket.send("response.create")
        events = await socket.until("rate_limits.updated")
    names = first_of_each(events)
    assert names[:5] == TURN_ORDER[2:]
    assert names[5:8] == ANSWER_ORDER[:2] + ANSWER_ORDER[3:4]
    assert accuracy(QUESTION, heard_in(events)[0]) >= 0.85


async def test_a_turn_that_came_in_one_event_is_heard(served: House) -> None:
    async with talking(served, AGENT) as socket:
        await set_up(socket, input={"turn_detection": None})
        sound = coded(said(QUESTION, before=4, after=4))
        await socket.send("input_audio_buffer.append", audio=base64.b64encode(sound).decode())
        await socket.send("input_audio_buffer.commit")
        events = await socket.until("conversation.item.input_audio_transcription.completed")
    assert accuracy(QUESTION, heard_in(events)[0]) >= 0.85
    usage = events[-1]["usage"]
    assert usage["type"] == "duration"
    assert usage["seconds"] == pytest.approx(len(sound) / 48_000, abs=0.1)


async def test_what_is_spoken_can_be_asked_in_words_and_the_other_way_round(served: House) -> None:
    async with talking(served, AGENT) as socket:
        await socket.send("conversation.item.create", item=user("Bonjour"))
        await socket.until("conversation.item.done")
        spoken = await socket.answer()
        assert transcript_of(spoken) == TEXT
        assert sound_of(spoken)
        await socket.send("conversation.item.create", item=user("Encore"))
        await socket.until("conversation.item.done")
        written = await socket.answer(output_modalities=["text"])
        assert "response.output_text.delta" in first_of_each(written)
        assert not sound_of(written)


async def test_a_model_that_speaks_may_call_functions(served: House, provider: FakeProvider) -> None:
    provider.replies.append(Reply(words=("Let me look at the weather. ",), tool=("weather", {"town": "Paris"})))
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
    async with talking(served, "openai/fake-large") as socket:
        await socket.send("session.update", session={"type": "realtime", "tools": [tool]})
        await socket.until("session.updated")
        call = one(await asked(socket), "response.function_call_arguments.done")
        assert call["name"] == "weather"
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "It rains."}
        await socket.send("conversation.item.create", item=output)
        await socket.until("conversation.item.done")
        answer = await socket.answer()
    assert transcript_of(answer) == TEXT
    assert sound_of(answer)


async def test_listening_and_speaking_are_in_the_record(served: House) -> None:
    async with talking(served, RULES) as socket:
        await asked(socket)
    admin = await served.services.users.find("admin")
    async with served.services.records.reading() as work:
        calls = await work.model_calls.outside_runs(admin.id, limit=20)
    assert {call.model for call in calls} >= {EARS, VOICE}


# -- what is not answered --


@pytest.mark.parametrize("noise", [0, 200, 3_000, 9_000])
async def test_silence_and_noise_are_never_answered(served: House, noise: int) -> None:
    rubbish = (numpy.random.default_rng(7).standard_normal(2 * RATE) * noise).clip(-32_000, 32_000)
    async with talking(served, AGENT) as socket, Microphone(socket, pace=3) as microphone:
        await microphone.say(silence(0.5) + rubbish.astype("<i2").tobytes() + silence(1.5))
        await socket.send("session.update", session={"type": "realtime"})
        events = await socket.until("session.updated")
        if any(event["type"].endswith("speech_stopped") for event in events):
            if not heard_in(events):
                events += await socket.until("conversation.item.input_audio_transcription.completed")
            assert heard_in(events) == [""]
        await socket.send("response.create")
        refused = await socket.until("error")
        assert refused[-1]["error"]["code"] == "conversation_empty"
        assert "response.created" not in first_of_each(events + refused)


async def test_silence_that_is_committed_has_no_words(served: House) -> None:
    async with talking(served, AGENT) as socket:
        await set_up(socket, input={"turn_detection": None})
        await socket.send("input_audio_buffer.append", audio=base64.b64encode(coded(silence(1))).decode())
        await socket.send("input_audio_buffer.commit")
        events = await socket.until("conversation.item.input_audio_transcription.completed")
        assert heard_in(events) == [""]
        assert "conversation.item.input_audio_transcription.delta" not in first_of_each(events)
        await socket.send("response.create")
        assert (await socket.error())["code"] == "conversation_empty"


async def test_ears_that_are_not_there_are_told_of_and_the_session_goes_on(served: House) -> None:
    async with talking(served, AGENT) as socket:
        await set_up(socket, input={"turn_detection": None, "transcription": {"model": "offline/nobody"}})
        await Microphone(socket, pace=8).say(said(QUESTION))
        await socket.send("input_audio_buffer.commit")
        failed = (await socket.until("conversation.item.input_audio_transcription.failed"))[-1]
        assert failed["error"]["code"] == "model_not_found"
        await set_up(socket, input={"transcription": {"model": EARS}})
        await Microphone(socket, pace=8).say(said(QUESTION))
        await socket.send("input_audio_buffer.commit")
        events = await socket.until("conversation.item.input_audio_transcription.completed")
        assert accuracy(QUESTION, heard_in(events)[0]) >= 0.85


async def test_a_voice_that_is_not_there_fails_the_response_by_name(served: House) -> None:
    async with talking(served, AGENT) as socket:
        await set_up(socket, output={"voice": "nobody"})
        await socket.say("Bonjour")
        response = one(await socket.answer(), "response.done")["response"]
        assert response["status"] == "failed"
        assert response["status_details"]["error"]["code"] == "voice_not_found"


REFUSED = [
    ({"input": {"noise_reduction": {"type": "near_field"}}}, "session.audio.input.noise_reduction"),
    (
        {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 6000}}},
        "session.audio.input.turn_detection.idle_timeout_ms",
    ),
    ({"input": {"transcription": {"keywords": ["a"]}}}, "session.audio.input.transcription.keywords"),
]


@pytest.mark.parametrize(("audio", "param"), REFUSED)
async def test_what_nobody_would_obey_is_refused_by_name(served: House, audio: dict[str, Any], param: str) -> None:
    async with talking(served, AGENT) as socket:
        await socket.send("session.update", session={"type": "realtime", "audio": audio})
        error = await socket.error()
        assert (error["code"], error["param"]) == ("unsupported_parameter", param)


# -- interrupting --


def long_answer(sentences: int) -> Reply:
    words = [f"This is the sentence of number {number}, and it goes on for a while. " for number in range(sentences)]
    return Reply(words=tuple(words))


async def until_sound(socket: Socket) -> list[dict[str, Any]]:
    return await socket.until("response.output_audio.delta")


async def test_whoever_speaks_interrupts_the_answer_and_gets_one_to_the_new_question(
    served: House, provider: FakeProvider
) -> None:
    provider.replies.append(long_answer(60))
    async with talking(served, AGENT) as socket, Microphone(socket) as microphone:
        await microphone.say(said(QUESTION, after=0.8))
        first = await until_sound(socket)
        await microphone.say(said("Please tell me the time."))
        microphone.stay_on()
        rest = await socket.until("rate_limits.updated")
        names = [event["type"] for event in rest]
        started = names.index("input_audio_buffer.speech_started")
        done = one(rest, "response.done")["response"]
        assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "turn_detected")
        assert "response.output_audio.delta" not in names[started:]
        again = await socket.until("rate_limits.updated")
        assert one(again, "response.done")["response"]["status"] == "completed"
        heard = transcript_of(first + rest)
        session = socket.session["id"]
    stored = await lines(served, session)
    assert stored[1][0] == "assistant"
    assert stored[1][1].strip() == heard.strip()
    assert "number 59" not in stored[1][1]


async def test_with_interrupt_response_false_the_answer_goes_on_and_the_turn_has_its_own_afterwards(
    served: House, provider: FakeProvider
) -> None:
    async with talking(served, AGENT) as socket, Microphone(socket) as microphone:
        detection = {"type": "server_vad", "interrupt_response": False}
        await set_up(socket, input={"turn_detection": detection})
        provider.replies.append(Reply(words=("Wait a moment, please. ", "I am still here."), pause=1.5))
        await socket.send("conversation.item.create", item=user("Bonjour"))
        await socket.send("response.create")
        await microphone.say(said(QUESTION))
        microphone.stay_on()
        first = await socket.until("response.done")
        second = await socket.until("response.done")
    assert [events[-1]["response"]["status"] for events in (first, second)] == ["completed", "completed"]
    assert accuracy(QUESTION, heard_in(first + second)[0]) >= 0.85


async def test_a_cancelled_answer_is_silent_at_once(served: House, provider: FakeProvider) -> None:
    late = []
    for _ in range(3):
        provider.replies.append(long_answer(80))
        async with talking(served, AGENT) as socket:
            await socket.say("Bonjour")
            await socket.send("response.create")
            await until_sound(socket)
            cancelled = last = time.monotonic()
            await socket.send("response.cancel")
            while (event := await socket.receive())["type"] != "response.done":
                if event["type"] == "response.output_audio.delta":
                    last = time.monotonic()
            assert event["response"]["status"] == "cancelled"
            late.append(last - cancelled)
    assert min(late) < 0.15


async def test_what_was_not_heard_is_cut_from_what_is_stored(served: House, provider: FakeProvider) -> None:
    provider.replies.append(long_answer(4))
    async with talking(served, AGENT) as socket:
        await socket.say("Bonjour")
        events = await socket.answer()
        item = one(events, "response.output_item.done")["item"]
        seconds = len(sound_of(events)) / 48_000
        await socket.send(
            "conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=int(seconds * 500)
        )
        told = await socket.receive()
        assert (told["type"], told["item_id"]) == ("conversation.item.truncated", item["id"])
        await socket.send("conversation.item.retrieve", item_id=item["id"])
        shown = (await socket.receive())["item"]["content"][0]["transcript"]
        whole = item["content"][0]["transcript"]
        assert whole.startswith(shown)
        assert 0.35 < len(shown) / len(whole) < 0.65
        assert re.search(r"\W$|\w$", shown)
        assert whole[len(shown)] == " "  # no word is cut in two
        await socket.ask("Encore")
        session = socket.session["id"]
    stored = await lines(served, session)
    assert stored[1] == ("assistant", shown)
    asked_of = provider.asked[-1]["messages"]
    assert [message["content"] for message in asked_of if message["role"] == "assistant"] == [shown]


@pytest.mark.parametrize(("place", "at", "param"), [(1, 0, "content_index"), (0, 3_600_000, "audio_end_ms")])
async def test_what_cannot_be_truncated_is_refused(served: House, place: int, at: int, param: str) -> None:
    async with talking(served, AGENT) as socket:
        await socket.say("Bonjour")
        item = one(await socket.answer(), "response.output_item.done")["item"]
        await socket.send("conversation.item.truncate", item_id=item["id"], content_index=place, audio_end_ms=at)
        assert (await socket.error())["param"] == param


# -- only ears --


async def test_a_session_may_only_transcribe(served: House) -> None:
    before = len((await served.client.get("/api/sessions")).json()["sessions"])
    async with talking(served, path="/v1/realtime?intent=transcription") as socket:
        assert socket.session["type"] == "transcription"
        await socket.send(
            "session.update",
            session={"type": "transcription", "audio": {"input": {"transcription": {"model": EARS, "language": "en"}}}},
        )
        assert (await socket.receive())["session"]["audio"]["input"]["transcription"]["model"] == EARS
        async with Microphone(socket) as microphone:
            await microphone.say(said(QUESTION, after=1))
            events = await socket.until("conversation.item.input_audio_transcription.completed")
        assert [event["type"] for event in events] == TURN_ORDER
        assert accuracy(QUESTION, heard_in(events)[0]) >= 0.85
        await socket.send("response.create")
        assert (await socket.error())["code"] == "unsupported_event"
    assert len((await served.client.get("/api/sessions")).json()["sessions"]) == before


async def test_a_page_may_be_given_a_secret_that_only_transcribes(served: House) -> None:
    heard = {"transcription": {"model": EARS}, "turn_detection": None}
    async with sdk(served) as client:
        made = await client.realtime.client_secrets.create(
            session={"type": "transcription", "audio": {"input": heard}}  # type: ignore[typeddict-item]
        )
    assert made.session.type == "transcription"
    secret = {"headers": {"authorization": f"Bearer {made.value}"}}
    async with talking(served, **secret) as socket:
        assert socket.session["type"] == "transcription"
        assert socket.session["audio"]["input"]["turn_detection"] is None
        await Microphone(socket, pace=4).say(said(QUESTION))
        await socket.send("input_audio_buffer.commit")
        events = await socket.until("conversation.item.input_audio_transcription.completed")
        assert accuracy(QUESTION, heard_in(events)[0]) >= 0.85
        await socket.send("response.create")
        assert (await socket.error())["code"] == "unsupported_event"
    with pytest.raises(InvalidStatus) as refused:
        async with talking(served, AGENT, **secret):
            pass
    assert refused.value.response.status_code == 400
    call = await served.anyone.post(
        "/v1/realtime/calls",
        content="v=0",
        headers={"authorization": f"Bearer {made.value}", "content-type": "application/sdp"},
    )
    assert (call.status_code, call.json()["error"]["param"]) == (400, "session")
    talks = await served.client.post("/v1/realtime/client_secrets", json={"session": {"type": "realtime"}})
    with pytest.raises(InvalidStatus):
        async with talking(
            served,
            path="/v1/realtime?intent=transcription",
            headers={"authorization": f"Bearer {talks.json()['value']}"},
        ):
            pass


# -- much --


async def test_who_reads_slowly_pauses_the_voice_and_misses_nothing(served: House, provider: FakeProvider) -> None:
    provider.replies.append(long_answer(12))
    async with talking(served, AGENT) as socket:
        await socket.say("Bonjour")
        await socket.send("response.create")
        events = await socket.until("response.created")
        while events[-1]["type"] != "response.done":
            events.append(await socket.receive())
            await anyio.sleep(0.01)
    assert transcript_of(events).count("sentence of number") == 12
    assert first_of_each(events)[: len(ANSWER_ORDER) - 1] == ANSWER_ORDER[:-1]


async def test_ten_people_talk_at_once_and_each_is_understood(served: House) -> None:
    questions = [
        QUESTION,
        "Please tell me the time.",
        "Where is the train station?",
        "The weather is nice today.",
        GREETING,
    ]

    async def talk(number: int) -> None:
        question = questions[number % len(questions)]
        async with talking(served, RULES) as socket:
            events = await asked(socket, question)
        [heard] = heard_in(events)
        assert accuracy(question, heard) >= 0.75
        assert first_of_each(events) == list(dict.fromkeys([*TURN_ORDER, *ANSWER_ORDER]))
        assert transcript_of(events).endswith(f"You said: {heard}")

    async with asyncio.timeout(60):
        await asyncio.gather(*(talk(number) for number in range(10)))


async def test_a_voice_that_leaves_in_the_middle_leaves_nothing_behind(served: House, provider: FakeProvider) -> None:
    for text in (True, False):
        async with talking(served, AGENT) as socket:
            if text:
                provider.replies.append(long_answer(40))
                await socket.say("Bonjour")
                await socket.send("response.create")
                await until_sound(socket)
            else:
                await Microphone(socket, pace=2).say(said(QUESTION))
    names = ("speaking", "following", "listening", "response ")
    await quiet(lambda: [task for task in asyncio.all_tasks() if task.get_name().startswith(names)])
    await quiet(lambda: served.services.realtime.count)


async def test_the_loop_is_free_while_a_minute_of_sound_comes_at_once(served: House) -> None:
    """The client is in the same loop: what it takes to make and send the frame is not counted."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            at = time.thread_time()  # others on this machine are not counted either
            await asyncio.sleep(0.002)
            lags.append(time.thread_time() - at)

    async with talking(served, AGENT) as socket:
        sound = base64.b64encode(coded(said(QUESTION, after=1) * 15)).decode()
        frame = orjson.dumps({"type": "input_audio_buffer.append", "audio": sound[:4_000_000]}).decode()
        await socket.wire.send(frame)
        watching = asyncio.create_task(watch())
        await socket.send("session.update", session={"type": "realtime"})
        events = await socket.until("session.updated")
        watching.cancel()
    assert first_of_each(events)[:3] == TURN_ORDER[:3]
    assert max(lags) < 0.1
