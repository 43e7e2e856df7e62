"""What may go wrong around an agent's question: who leaves, what breaks, what is odd. Nothing is approved by it."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from config.settings import Settings
from domain.errors import Unavailable
from tests.fakes.house import House, house_settings, open_house
from tests.fakes.openai_door import reaching
from tests.fakes.providers import FakeProvider
from tests.fakes.realtime import Socket, quiet, talking, user, words
from tests.fakes.speech import need_speech
from tests.fakes.voices import coded, said
from tests.integration.test_background_api import with_agents
from tests.integration.test_realtime_approvals import (
    ASKER,
    ask,
    at_work,
    code_of,
    done_things,
    requests_in,
    response,
    run_of,
    settled,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with open_house(with_agents(house_settings(tmp_path_factory.mktemp("faults")))) as opened:
        yield opened


@pytest.fixture(scope="module")
async def spoken(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    need_speech()
    settings = with_agents(house_settings(tmp_path_factory.mktemp("spoken-faults")))
    realtime = settings.realtime.model_copy(update={"output": "audio", "speech_model": "offline/flite"})
    hearing = settings.transcription.model_copy(update={"model": "offline/pocketsphinx"})
    async with open_house(settings.model_copy(update={"realtime": realtime, "transcription": hearing})) as house:
        yield house


async def click(talk: Socket, request_id: str, **more: Any) -> None:
    item = {"type": "mcp_approval_response", "approval_request_id": request_id, "approve": True, **more}
    await talk.send("conversation.item.create", item=item)


async def lines_of(house: House, session_id: str) -> list[str]:
    stored = (await house.client.get(f"/api/sessions/{session_id}/messages")).json()["messages"]
    return [line["content"] for line in stored]


# -- while it is handed over --


async def test_who_leaves_as_the_question_is_written_loses_nothing_and_pays_once(
    shared_settings: Settings,
    shared_provider: FakeProvider,
    provider: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_house(with_agents(reaching(shared_settings, shared_provider))) as house:
        background = house.services.background
        assert background is not None
        first, begun = background.runs.take_over, asyncio.Event()

        async def told(*given: Any) -> bool:
            begun.set()
            return await first(*given)

        monkeypatch.setattr(background.runs, "take_over", told)
        for _ in range(10):
            begun.clear()
            async with talking(house, f"{ASKER}@openai/fake-large") as talk:
                await talk.say("Give it a thought")
                await talk.send("response.create")
                await begun.wait()
                talk.wire.transport.abort()
                session = talk.session["id"]
            await quiet(lambda: house.services.realtime.count)
            run = await run_of(house, session)
            assert run["status"] == "waiting"
            assert run["usage"]["input_tokens"], "what it cost is in the record"
            body = {"approval_id": run["approvals"][0]["approval_id"]}
            assert (await house.client.post(f"/api/runs/{run['run_id']}/approve", json=body)).status_code == 200
            run = await settled(house, run["run_id"], "completed")
            paid = [sum(counts) for counts in zip(*provider.ledger, strict=True)]
            assert [run["usage"]["input_tokens"], run["usage"]["output_tokens"]] == paid
            assert len(provider.ledger) == 2, "nothing is asked of a model twice"
            provider.ledger.clear()
            assert done_things(house) == ["thought"]


async def test_a_question_that_cannot_be_kept_fails_the_run_and_frees_the_session(
    place: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = place.services.checkpoints
    keep = checkpoints.keep

    async def full(thread_id: str) -> None:
        await keep(thread_id)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "keep", full)
    async with talking(place, ASKER) as talk:
        failed = response(await ask(talk, "Please send a mail"))
        assert failed["status"] == "failed"
        assert "space" not in str(failed["status_details"])
        run = await run_of(place, talk.session["id"])
        assert run["status"] == "failed"
        assert await checkpoints.latest(run["run_id"], run["run_id"]) is None
        assert words(await ask(talk, "Now do nothing")) == "I see: nothing.That is all."


async def test_nothing_is_held_of_runs_that_are_over(place: House) -> None:
    for what in ("mail", "nothing", "both"):
        async with talking(place, ASKER) as talk:
            await ask(talk, f"Please send {what}")
    async with talking(place, ASKER) as talk:
        await talk.say("Please send a mail")
        await talk.send("response.create")
    await quiet(lambda: place.services.realtime.count)
    held = place.services.checkpoints.held
    await quiet(lambda: held.storage or held.writes or held.blobs)
    await quiet(lambda: place.services.events.readers)
    names = ("watching", "response ", "answering", "cancelling")
    await quiet(lambda: [task for task in asyncio.all_tasks() if task.get_name().startswith(names)])


# -- while it is followed --


async def test_a_database_that_is_away_for_a_moment_costs_nobody_the_next_question(
    place: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = place.services.events
    read, fails = events._read, [True, True]

    async def shaky(run_id: str, after: int) -> Any:
        if fails and fails.pop():
            raise Unavailable("The database cannot be read.")
        return await read(run_id, after)

    async with talking(place, ASKER) as talk:
        await ask(talk, "Do it twice")
        monkeypatch.setattr(events, "_read", shaky)
        assert words(await ask(talk, "yes")) == "May I send the mail?"
        assert words(await ask(talk, "yes")) == "The mail is on its way.That is all."
    assert done_things(place) == ["mail"]


async def test_a_new_question_is_not_taken_for_the_one_that_is_being_answered(place: House) -> None:
    code_of(place).may_end.clear()
    async with talking(place, ASKER) as talk:
        (request,) = requests_in(await ask(talk, "Please do something slow"))
        await click(talk, request["id"])
        await talk.until("response.created")
        await talk.say("Now do nothing")
        await talk.send("response.create")
        assert (await talk.error())["code"] == "conversation_already_has_active_response"
        code_of(place).may_end.set()
        assert words(await talk.until("rate_limits.updated")) == "The slow is on its way.That is all."
        assert words(await talk.answer()) == "I see: nothing.That is all."
    assert done_things(place) == ["slow"]


async def test_who_comes_back_while_it_works_is_told_the_rest(place: House) -> None:
    async with talking(place, ASKER) as talk:
        await at_work(place, talk)
        session = talk.session["id"]
    async with talking(place, session=session) as talk:
        code_of(place).may_end.set()
        assert words(await talk.until("rate_limits.updated")) == "The slow is on its way.That is all."
        assert words(await ask(talk, "Now do nothing")) == "I see: nothing.That is all."
    assert done_things(place) == ["slow"]


# -- what is kept --


async def test_what_was_heard_before_the_question_is_kept_when_the_run_is_cancelled(place: House) -> None:
    async with talking(place, ASKER) as talk:
        await ask(talk, "Please send a mail")
        run = await run_of(place, talk.session["id"])
        await place.client.post(f"/api/runs/{run['run_id']}/cancel")
        await talk.until("rate_limits.updated")
        assert await lines_of(place, talk.session["id"]) == ["Please send a mail", "I see: mail."]


async def test_an_agent_with_more_state_goes_on_with_it_and_tells_nothing_of_a_cancelled_run(place: House) -> None:
    async with talking(place, "agent/tally") as talk:
        assert words(await ask(talk, "hello")) == "Turn 1."
        assert words(await ask(talk, "please ask")) == "Turn 2.May I?"
        run = await run_of(place, talk.session["id"])
        await place.client.post(f"/api/runs/{run['run_id']}/cancel")
        await talk.until("rate_limits.updated")
        assert words(await ask(talk, "ask again")) == "Turn 3.May I?"
        assert words(await ask(talk, "yes")) == "Done."
        assert words(await ask(talk, "hello again")) == "Turn 4."
        assert await lines_of(place, talk.session["id"]) == [
            "hello", "Turn 1.", "please ask", "Turn 2.", "ask again", "Turn 3.", "Done.", "hello again", "Turn 4.",
        ]  # fmt: skip


@pytest.mark.parametrize("agent", ["hitl", "hitl_each"])
async def test_langchains_middleware_asks_and_is_answered_in_its_own_forms(place: House, agent: str) -> None:
    async with talking(place, f"agent/{agent}") as talk:
        assert words(await ask(talk, "one")) == "Let me see.May I call send mail with to: Bob?"
        assert words(await ask(talk, "yes, please")) == "Results: sent to Bob"
        asked = await ask(talk, "two")
        told = await ask(talk, "no")
        if agent == "hitl_each":
            assert len(requests_in(asked)) == 2
            assert words(told) == "May I call send mail with to: Eve?"
            told = await ask(talk, "yes")
            assert words(told).endswith("; sent to Eve")
        else:
            assert words(asked).endswith("with to: Bob? May I call send mail with to: Eve?")
            assert "sent to" not in words(told)
        assert "rejected the tool call" in words(told)


# -- odd questions and clicks --


@pytest.mark.parametrize(("what", "question"), [("blank", "May I go on?"), ("giant", "May I?"), ("surrogate", "a?b?")])
async def test_however_odd_a_question_is_it_is_asked_and_can_be_answered(
    place: House, what: str, question: str
) -> None:
    async with talking(place, ASKER) as talk:
        asked = await ask(talk, f"Do the {what}")
        assert words(asked) == f"I see: {what}.{question}"
        assert len(requests_in(asked)[0]["arguments"]) < 100_000
        assert words(await ask(talk, "yes")) == f"I did the {what}.That is all."
    assert done_things(place) == [what]


async def test_a_yes_to_what_could_not_be_read_out_does_not_count(place: House) -> None:
    async with talking(place, ASKER) as talk:
        asked = await ask(talk, "Make the calls")
        assert words(asked).endswith(" more.")
        assert words(await ask(talk, "yes")).startswith("That is more than I can read out: say no, or answer on the")
        assert done_things(place) == []
        await click(talk, requests_in(asked)[0]["id"])
        assert words(await talk.until("rate_limits.updated")) == "I did the calls.That is all."
    assert done_things(place) == ["calls"]


async def test_a_click_brings_the_words_that_are_wanted_and_counts_once(place: House) -> None:
    async with talking(place, ASKER) as talk:
        (request,) = requests_in(await ask(talk, "Tell me when"))
        await click(talk, request["id"])
        error = await talk.error()
        assert (error["code"], error["param"]) == ("words_needed", "item.reason")
        await click(talk, request["id"], reason="on Monday")
        assert words(await talk.until("rate_limits.updated")) == "I shall send it on Monday.That is all."
        await click(talk, request["id"], reason="on Tuesday")
        assert (await talk.error())["code"] == "approval_answered"


async def test_whatever_is_wrong_with_a_click_is_an_error_event(place: House) -> None:
    async with talking(place, ASKER) as talk:
        (request,) = requests_in(await ask(talk, "Please send a mail"))
        wrong: list[dict[str, Any]] = [
            {"approve": "yes"},
            {"approve": None},
            {"extra": 1},
            {"approval_request_id": "é"},
        ]
        for more in wrong:
            await click(talk, request["id"], **more) if "approval_request_id" not in more else await talk.send(
                "conversation.item.create", item={"type": "mcp_approval_response", "approve": True, **more}
            )
            await talk.error()
        for kind, more in (("delete", {}), ("truncate", {"content_index": 0, "audio_end_ms": 0})):
            await talk.send(f"conversation.item.{kind}", item_id=request["id"], **more)
            await talk.error()
        reference = [{"type": "item_reference", "id": request["id"]}]
        await talk.send("response.create", response={"conversation": "none", "input": reference})
        assert (await talk.error())["param"] == "response.input.0.id"
        for _ in range(300):
            await click(talk, "nothing")
        assert {(await talk.error())["code"] for _ in range(300)} == {"approval_not_found"}
        assert words(await ask(talk, "no")).startswith("The mail stays here")
    assert done_things(place) == []


async def test_a_secret_opens_a_session_that_is_asked_too(place: House) -> None:
    made = await place.client.post(
        "/v1/realtime/client_secrets", json={"session": {"type": "realtime", "model": ASKER}}
    )
    async with talking(place, token=made.json()["value"]) as talk:
        assert words(await ask(talk, "Please send a mail")).endswith("May I send the mail?")
        assert words(await ask(talk, "yes")) == "The mail is on its way.That is all."
        run = await run_of(place, talk.session["id"])
        assert run["approvals"][0]["answered_by"] == "admin"
    assert done_things(place) == ["mail"]
    missing = await place.client.post("/v1/realtime/client_secrets", json={"session": {"model": ASKER}})
    assert missing.json()["error"]["param"] == "session.type"


# -- by voice --


async def test_a_question_that_is_cut_short_is_on_the_screen_and_is_asked_again(spoken: House) -> None:
    async with talking(spoken, ASKER) as talk:
        await talk.say("Please send the message")
        await talk.send("response.create")
        await talk.until("response.output_audio_transcript.delta")
        await talk.send("response.cancel")
        cut = await talk.until("rate_limits.updated")
        assert response(cut)["status"] == "cancelled"
        (request,) = requests_in(cut)
        first = next(item for item in response(cut)["output"] if item["type"] == "message")
        await talk.send("conversation.item.truncate", item_id=first["id"], content_index=0, audio_end_ms=1)
        await talk.until("conversation.item.truncated")
        await click(talk, request["id"])
        assert response(await talk.until("rate_limits.updated"))["status"] == "completed"
        stored = await lines_of(spoken, talk.session["id"])
        assert "I see: message." not in stored, "what was not heard is not in the record, though the run goes on"
        assert stored[-1] == "That is all."
    assert done_things(spoken) == ["message"]


async def test_a_yes_that_was_recorded_before_the_question_does_not_count(spoken: House) -> None:
    """Push to talk: the sound came before the question, and is committed after it."""
    async with talking(spoken, ASKER) as talk:
        await talk.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        await talk.until("session.updated")
        yes = base64.b64encode(coded(said("Yes please.", after=0.3))).decode()
        await talk.send("input_audio_buffer.append", audio=yes)
        await ask(talk, "Please send the message")
        for expected in ([], ["message"]):
            await talk.send("input_audio_buffer.commit")
            await talk.send("response.create")
            await talk.until("rate_limits.updated")
            assert done_things(spoken) == expected
            await talk.send("input_audio_buffer.append", audio=yes)


async def test_a_question_of_the_voice_can_be_answered_in_writing(spoken: House) -> None:
    async with talking(spoken, ASKER) as talk:
        await ask(talk, "Please send the message")
        await talk.send("conversation.item.create", item=user("go ahead"))
        await talk.until("conversation.item.done")
        told = await talk.answer(output_modalities=["text"])
        assert words(told) == "The message is on its way.That is all."
    assert done_things(spoken) == ["message"]
