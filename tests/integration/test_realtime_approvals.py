"""An agent that asks before it acts, in a realtime session: asked in words, answered in words or by a click, once."""

import asyncio
import importlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from config.settings import Settings
from tests.contracts.storage import new_storage
from tests.fakes.house import House, house_settings, open_house
from tests.fakes.openai_door import reaching
from tests.fakes.providers import TEXT, FakeProvider
from tests.fakes.realtime import Socket, talking, user, words
from tests.fakes.speech import need_speech
from tests.fakes.voices import Microphone, heard_in, said, sound_of, transcript_of
from tests.integration.test_background_api import PLACES, with_agents
from tests.integration.test_realtime_text import TEXT_ORDER

pytestmark = pytest.mark.anyio
ASKER = "agent/asker"


@pytest.fixture(params=PLACES, ids="-".join, scope="module")
async def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """A house on each database and queue."""
    engine, queue = request.param
    folder = tmp_path_factory.mktemp(f"asking-{engine}-{queue}")
    async with new_storage(engine, folder) as storage:
        settings = house_settings(folder).model_copy(update={"storage": storage.storage})
        async with open_house(with_agents(settings, queue=queue)) as opened:
            yield opened


def code_of(house: House) -> Any:
    """The agent's own module."""
    return importlib.import_module(house.services.registry.get("asker").builder.__module__)


def done_things(house: House) -> list[str]:
    """What the agent has really done, since this was last asked."""
    module = code_of(house)
    things, module.done[:] = list(module.done), []
    return things


def response(events: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [event["response"] for event in events if event["type"] == "response.done"]
    return found


def requests_in(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    items = response(events)["output"]
    return [item for item in items if item["type"] == "mcp_approval_request"]


async def ask(talk: Socket, text: str) -> list[dict[str, Any]]:
    await talk.say(text)
    return await talk.answer()


async def at_work(house: House, talk: Socket) -> None:
    """Something slow has been approved, and is being done until `may_end` is set."""
    code_of(house).may_end.clear()
    await ask(talk, "Please do something slow")
    await talk.say("yes")
    await talk.send("response.create")
    await talk.until("response.created")


async def run_of(house: House, session_id: str) -> dict[str, Any]:
    """The latest run of a session, whole."""
    runs = (await house.client.get("/api/runs", params={"session_id": session_id})).json()["runs"]
    found: dict[str, Any] = (await house.client.get(f"/api/runs/{runs[0]['run_id']}")).json()
    return found


# -- in words --


async def test_a_yes_in_words_lets_the_agent_act_and_go_on(place: House) -> None:
    async with talking(place, ASKER) as talk:
        asked = await ask(talk, "Please send a mail")
        assert words(asked) == "I see: mail.May I send the mail?"
        assert response(asked)["status"] == "completed"
        (request,) = requests_in(asked)
        assert request["server_label"] == "asker"
        assert orjson.loads(request["arguments"])["to"] == "Bob"
        waiting = await run_of(place, talk.session["id"])
        assert waiting["status"] == "waiting"
        assert [one["approval_id"] for one in waiting["approvals"]] == [request["id"]]
        assert done_things(place) == []
        told = await ask(talk, "Yes, go ahead.")
        assert words(told) == "The mail is on its way.That is all."
        assert response(told)["status"] == "completed"
        assert done_things(place) == ["mail"]
        assert words(await ask(talk, "Now do nothing")) == "I see: nothing.That is all."
        run = (await place.client.get(f"/api/runs/{waiting['run_id']}")).json()
        assert (run["status"], run["approvals"][0]["status"]) == ("completed", "approved")
        assert run["approvals"][0]["answered_by"] == "admin"
        stored = (await place.client.get(f"/api/sessions/{talk.session['id']}/messages")).json()["messages"]
        assert [(line["role"], line["content"]) for line in stored[:4]] == [
            ("user", "Please send a mail"),
            ("assistant", "I see: mail."),
            ("assistant", "The mail is on its way."),
            ("assistant", "That is all."),
        ]


async def test_a_no_is_told_to_the_agent_with_what_was_said(place: House) -> None:
    async with talking(place, ASKER) as talk:
        await ask(talk, "Please send a mail")
        told = await ask(talk, "No, not today")
        assert words(told) == "The mail stays here: No, not todayThat is all."
        assert done_things(place) == []


async def test_what_is_neither_yes_nor_no_is_asked_again_and_approves_nothing(place: House) -> None:
    async with talking(place, ASKER) as talk:
        await ask(talk, "Please send a mail")
        for unclear in ("What is in it?", "yes, but wait a moment", "I don't know"):
            again = await ask(talk, unclear)
            assert words(again) == "I need a yes or a no. May I send the mail?"
            assert [event["type"] for event in again] == TEXT_ORDER
        told = await ask(talk, "no")
        assert "What is in it? yes, but wait a moment I don't know no" in words(told)
        assert done_things(place) == []


async def test_a_yes_that_was_said_before_the_question_does_not_count(place: House) -> None:
    async with talking(place, ASKER) as talk:
        await talk.say("Please send a mail")
        await talk.send("response.create")
        await talk.send("conversation.item.create", item=user("Yes!"))
        await talk.until("rate_limits.updated")
        again = await talk.answer()
        assert words(again) == "May I send the mail?"
        assert done_things(place) == []
        await ask(talk, "Yes!")
        assert done_things(place) == ["mail"]


async def test_several_questions_are_asked_one_after_the_other(place: House) -> None:
    async with talking(place, ASKER) as talk:
        asked = await ask(talk, "Send both")
        assert len(requests_in(asked)) == 2
        assert words(asked).endswith("May I send the mail?")
        second = await ask(talk, "yes")
        assert words(second) == "May I send the letter?"
        assert done_things(place) == []
        told = await ask(talk, "no")
        assert "The mail is on its way." in words(told)
        assert "The letter stays here: no" in words(told)
        assert done_things(place) == ["mail"]
        asked = await ask(talk, "Do it twice")
        assert words(asked).endswith("Are you sure?")
        asked = await ask(talk, "sure")
        assert words(asked).endswith("May I send the mail?")
        assert len(requests_in(asked)) == 1
        assert words(await ask(talk, "ok")) == "The mail is on its way.That is all."
        assert done_things(place) == ["mail"]


async def test_a_question_that_wants_words_is_answered_with_them(place: House) -> None:
    async with talking(place, ASKER) as talk:
        assert words(await ask(talk, "Tell me when")).endswith("When shall I send it?")
        assert words(await ask(talk, "no later than Monday")) == "I shall send it no later than Monday.That is all."
        assert words(await ask(talk, "Use a tool")).endswith("May I call send mail with to: Bob?")
        assert words(await ask(talk, "of course")) == "The decision is approve.That is all."


async def test_what_was_paid_before_and_after_the_question_is_the_providers_count(
    shared_settings: Settings, shared_provider: FakeProvider, provider: FakeProvider
) -> None:
    settings = with_agents(reaching(shared_settings, shared_provider))
    async with open_house(settings) as house, talking(house, f"{ASKER}@openai/fake-large") as talk:
        asked = await ask(talk, "Give it a thought")
        assert words(asked) == f"{TEXT}May I send the thought?"
        told = await ask(talk, "yes")
        assert words(told) == f"The thought is on its way.{TEXT}"
        usages = [response(events)["usage"] for events in (asked, told)]
        counted = [(usage["input_tokens"], usage["output_tokens"]) for usage in usages]
        assert counted == provider.ledger, "each response tells what it has cost itself"
        run = await run_of(house, talk.session["id"])
        whole = tuple(map(sum, zip(*counted, strict=True)))
        assert (run["usage"]["input_tokens"], run["usage"]["output_tokens"]) == whole
    done_things(house)


# -- by a click --


async def test_a_click_answers_by_the_requests_id_once(place: House) -> None:
    async with talking(place, ASKER) as talk:
        (request,) = requests_in(await ask(talk, "Please send a mail"))
        reply = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
        await talk.send("conversation.item.create", item={**reply, "approval_request_id": "nothing"}, event_id="wrong")
        error = await talk.error()
        assert (error["code"], error["event_id"]) == ("approval_not_found", "wrong")
        for wrong in ({"previous_item_id": "nobody"}, {"item": {**reply, "id": request["id"]}}):
            await talk.send("conversation.item.create", **{"item": reply, **wrong})
            assert (await talk.error())["code"] in ("item_not_found", "item_exists")
        assert (await run_of(place, talk.session["id"]))["status"] == "waiting", "nothing wrong approves anything"
        await talk.send("conversation.item.create", item=reply)
        await talk.send("conversation.item.create", item=reply, event_id="again")
        await talk.send("response.create")
        events = await talk.until("rate_limits.updated")
        assert events[0]["item"]["approve"] is True
        assert [event["error"]["event_id"] for event in events if event["type"] == "error"] == ["again"]
        assert words(events) == "The mail is on its way.That is all."
        assert done_things(place) == ["mail"]


async def test_after_a_click_the_rest_is_told_without_being_asked_for(place: House) -> None:
    async with talking(place, ASKER) as talk:
        (request,) = requests_in(await ask(talk, "Please send a mail"))
        reply = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": False}
        await talk.send("conversation.item.create", item={**reply, "reason": "too dear"})
        events = await talk.until("rate_limits.updated")
        assert words(events) == "The mail stays here: too dearThat is all."
        assert done_things(place) == []


async def test_an_approval_at_another_door_lets_the_conversation_go_on(place: House) -> None:
    async with talking(place, ASKER) as talk:
        (request,) = requests_in(await ask(talk, "Please send a mail"))
        run = await run_of(place, talk.session["id"])
        answer = await place.client.post(f"/api/runs/{run['run_id']}/approve", json={"approval_id": request["id"]})
        assert answer.status_code == 200
        events = await talk.until("rate_limits.updated")
        assert words(events) == "The mail is on its way.That is all."
        assert words(await ask(talk, "Now do nothing")) == "I see: nothing.That is all."
    done_things(place)


async def test_of_two_who_answer_at_the_same_moment_one_is_heard(place: House) -> None:
    async with talking(place, ASKER) as talk:
        (request,) = requests_in(await ask(talk, "Please send a mail"))
        run = await run_of(place, talk.session["id"])
        await talk.say("yes")
        body = {"approval_id": request["id"], "decision": "approve"}
        path = f"/api/runs/{run['run_id']}/approve"
        clicks, _ = await asyncio.gather(
            asyncio.gather(*(place.client.post(path, json=body) for _ in range(4))), talk.send("response.create")
        )
        events = await talk.until("rate_limits.updated")
        if any(click.status_code == 200 for click in clicks):
            while not words(events).endswith("That is all."):
                events += await talk.until("rate_limits.updated")
        assert words(events) == "The mail is on its way.That is all."
        assert done_things(place) == ["mail"]


# -- leaving, coming back, cancelling --


async def test_a_question_outlives_the_connection(place: House) -> None:
    async with talking(place, ASKER) as talk:
        (request,) = requests_in(await ask(talk, "Please send a mail"))
        session = talk.session["id"]
    assert (await run_of(place, session))["status"] == "waiting"
    async with talking(place, session=session) as talk:
        added = await talk.receive()
        assert (added["type"], added["item"]) == ("conversation.item.added", request)
        assert (await talk.receive())["type"] == "conversation.item.done"
        again = await ask(talk, "yes")  # to what, it was not asked here
        assert words(again) == "May I send the mail?"
        assert done_things(place) == []
        assert words(await ask(talk, "yes")) == "The mail is on its way.That is all."
        assert done_things(place) == ["mail"]


async def test_a_run_that_waits_from_another_door_is_asked_here(place: House) -> None:
    first = (await place.client.post("/api/agents/asker/run", json={"input": "Do nothing"})).json()
    session = first["session_id"]
    await settled(place, first["run_id"], "completed")
    body = {"input": "Please send a mail", "session_id": session}
    run = (await place.client.post("/api/agents/asker/run", json=body)).json()
    await settled(place, run["run_id"], "waiting")
    async with talking(place, session=session) as talk:
        await talk.until("conversation.item.done")
        assert words(await talk.answer()) == "May I send the mail?"
        assert words(await ask(talk, "yes")) == "The mail is on its way.That is all."
    assert done_things(place) == ["mail"]
    assert (await settled(place, run["run_id"], "completed"))["output"] == "That is all."


async def test_a_cancelled_run_gives_the_conversation_back(place: House) -> None:
    async with talking(place, ASKER) as talk:
        await ask(talk, "Please send a mail")
        run = await run_of(place, talk.session["id"])
        cancelled = await place.client.post(f"/api/runs/{run['run_id']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        events = await talk.until("rate_limits.updated")
        assert response(events)["status"] == "cancelled"
        assert words(await ask(talk, "Now do nothing")) == "I see: nothing.That is all."
        assert done_things(place) == []


async def test_what_was_approved_can_be_cancelled_and_can_fail(place: House) -> None:
    async with talking(place, ASKER) as talk:
        await at_work(place, talk)
        await talk.send("response.cancel")
        assert response(await talk.until("rate_limits.updated"))["status"] == "cancelled"
        await ask(talk, "Please make a fault")
        failed = response(await ask(talk, "yes"))
        assert failed["status_details"]["error"]["code"] == "agent_failed"
        assert "RuntimeError" not in orjson.dumps(failed).decode()
        assert words(await ask(talk, "Now do nothing")) == "I see: nothing.That is all."
    assert done_things(place) == []


async def test_what_was_approved_is_done_though_everybody_leaves(place: House) -> None:
    async with talking(place, ASKER) as talk:
        await at_work(place, talk)
        run = await run_of(place, talk.session["id"])
    code_of(place).may_end.set()
    assert (await settled(place, run["run_id"], "completed"))["output"] == "That is all."
    assert done_things(place) == ["slow"]


async def test_while_it_waits_an_agent_takes_no_new_orders(place: House) -> None:
    async with talking(place, ASKER) as talk:
        await ask(talk, "Please send a mail")
        await talk.send("response.create", response={"instructions": "Be brief."}, event_id="e")
        error = await talk.error()
        assert (error["code"], error["param"]) == ("unsupported_parameter", "response.instructions")
        busy = {"message": "Do nothing", "session_id": talk.session["id"]}
        assert (await place.client.post("/completion", json=busy)).json()["code"] == "session_busy"
        alone = await talk.answer(conversation="none", input=[user("Do nothing")])
        assert words(alone) == "I see: nothing.That is all."
        assert words(await ask(talk, "no")).startswith("The mail stays here")


async def test_out_of_band_nobody_could_answer_so_it_fails_by_name(place: House) -> None:
    async with talking(place, ASKER) as talk:
        events = await talk.answer(conversation="none", input=[user("Please send a mail")])
        assert response(events)["status_details"]["error"]["code"] == "approval_needed"
        assert words(await ask(talk, "Now do nothing")) == "I see: nothing.That is all."


async def test_nobody_hears_of_somebody_elses_question(place: House) -> None:
    await place.add_user("eve", scopes=["realtime", "completion"])
    eve = (await place.log_in("eve", "a good password")).json()["access_token"]
    async with talking(place, ASKER) as talk:
        (request,) = requests_in(await ask(talk, "Please send a mail"))
        async with talking(place, ASKER, token=eve) as other:
            reply = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
            await other.send("conversation.item.create", item=reply)
            assert (await other.error())["code"] == "approval_not_found"
        assert words(await ask(talk, "no")).startswith("The mail stays here")
    assert done_things(place) == []


async def settled(house: House, run_id: str, status: str) -> dict[str, Any]:
    """A run, once it stands like that."""
    async with asyncio.timeout(15):
        while True:
            run: dict[str, Any] = (await house.client.get(f"/api/runs/{run_id}")).json()
            if run["status"] == status:
                return run
            await asyncio.sleep(0.05)


# -- by voice --


@pytest.fixture(scope="module")
async def spoken(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """A house in which everybody talks."""
    need_speech()
    settings = with_agents(house_settings(tmp_path_factory.mktemp("asking-aloud")))
    realtime = settings.realtime.model_copy(update={"output": "audio", "speech_model": "offline/flite"})
    hearing = settings.transcription.model_copy(update={"model": "offline/pocketsphinx"})
    async with open_house(settings.model_copy(update={"realtime": realtime, "transcription": hearing})) as house:
        yield house


async def say(talk: Socket, text: str) -> list[dict[str, Any]]:
    """What comes of a spoken turn, to the end of its answer."""
    async with Microphone(talk) as microphone:
        await microphone.say(said(text))
        microphone.stay_on()
        return await talk.until("rate_limits.updated")


async def test_a_question_is_asked_aloud_and_a_spoken_yes_lets_the_agent_act(spoken: House) -> None:
    async with talking(spoken, ASKER) as talk:
        asked = await ask(talk, "Please send the message")  # typed: these ears are not sure of the word
        assert transcript_of(asked) == "I see: message.May I send the message?"
        assert len(sound_of(asked)) > 48_000
        assert (await run_of(spoken, talk.session["id"]))["status"] == "waiting"
        again = await say(talk, "What is the capital of France?")
        assert transcript_of(again) == "I need a yes or a no. May I send the message?"
        assert done_things(spoken) == []
        told = await say(talk, "Yes please.")
        assert transcript_of(told) == "The message is on its way.That is all.", heard_in(told)
        assert response(told)["status"] == "completed"
        assert done_things(spoken) == ["message"]
        refused = await ask(talk, "Please send the message")
        assert transcript_of(refused).endswith("May I send the message?")
        assert transcript_of(await say(talk, "No, stop.")).startswith("The message stays here")
        assert done_things(spoken) == []


async def test_who_speaks_into_the_question_has_not_answered_it(spoken: House) -> None:
    async with talking(spoken, ASKER) as talk:
        await talk.say("Please send the message")
        await talk.send("response.create")
        await talk.until("response.output_audio_transcript.delta")
        async with Microphone(talk) as microphone:  # at once, and over what is being said
            await talk.send("response.cancel")
            await microphone.say(said("Yes please."))
            microphone.stay_on()
            events = await talk.until("rate_limits.updated")
            assert response(events)["status"] == "cancelled"
            events = await talk.until("rate_limits.updated")
        assert transcript_of(events) == "May I send the message?"
        assert done_things(spoken) == []
        assert transcript_of(await say(talk, "Yes please.")).startswith("The message is on its way.")
        assert done_things(spoken) == ["message"]


async def test_a_yes_to_a_question_that_was_not_heard_to_its_end_does_not_count(spoken: House) -> None:
    async with talking(spoken, ASKER) as talk:
        asked = await ask(talk, "Please send the message")
        question = response(asked)["output"][-1]
        async with Microphone(talk) as microphone:
            await microphone.say(said("Yes please."))
            cut = {"item_id": question["id"], "content_index": 0, "audio_end_ms": 200}
            await talk.send("conversation.item.truncate", **cut)  # as players do when somebody speaks
            microphone.stay_on()
            again = await talk.until("rate_limits.updated")
        assert "error" not in [event["type"] for event in again], "nothing of it is in the record"
        assert transcript_of(again) == "May I send the message?"
        assert done_things(spoken) == []
        assert transcript_of(await say(talk, "Yes please.")).startswith("The message is on its way.")
        assert done_things(spoken) == ["message"]


async def test_who_speaks_over_approved_work_stops_the_voice_and_not_the_work(spoken: House) -> None:
    async with talking(spoken, ASKER) as talk:
        await at_work(spoken, talk)
        async with Microphone(talk) as microphone:
            await microphone.say(said("Please do nothing."))
            microphone.stay_on()
            await talk.until("conversation.item.input_audio_transcription.completed")
            code_of(spoken).may_end.set()
            first = await talk.until("rate_limits.updated")
            then = await talk.until("rate_limits.updated")
    assert response(first)["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert sound_of(first) == b""
    assert transcript_of(then).startswith("I see: "), "what was said meanwhile is answered afterwards"
    assert done_things(spoken) == ["slow"]
