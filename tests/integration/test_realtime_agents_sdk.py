"""OpenAI's Agents SDK talks to our agents as it does to OpenAI's realtime models: its own defaults, text and voice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession

from tests.fakes.hearing import accuracy
from tests.fakes.house import House, house_settings, open_house
from tests.fakes.speech import need_speech
from tests.fakes.voices import coded, said
from tests.integration.test_background_api import with_agents

pytestmark = pytest.mark.anyio
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
async def spoken(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    need_speech()
    settings = with_agents(house_settings(tmp_path_factory.mktemp("agents-sdk")))
    realtime = settings.realtime.model_copy(update={"speech_model": "offline/flite"})
    async with open_house(settings.model_copy(update={"realtime": realtime})) as house:
        yield house


async def opened(house: House, model: str, **more: Any) -> RealtimeSession:
    """A session as the SDK opens it; only who listens is named, for its default is a model of OpenAI's."""
    settings = {"model_name": model, "input_audio_transcription": {"model": "offline/pocketsphinx"}, **more}
    runner = RealtimeRunner(
        RealtimeAgent(name="guest", instructions="Be brief."),
        config={"model_settings": settings},  # type: ignore[typeddict-item]
    )
    url = house.url.replace("http", "ws") + f"/v1/realtime?model={model}"
    return await runner.run(model_config={"api_key": house.tokens["access_token"], "url": url})


async def to_the_end(session: RealtimeSession) -> list[str]:
    """The kinds of events to the end of one answer; an error is none that it may have."""
    kinds: list[str] = []
    async with asyncio.timeout(20):
        async for event in session:
            assert event.type != "error", event
            kinds.append(event.type)
            if event.type == "agent_end":
                return kinds
    raise AssertionError("the session ended")


def last(session: RealtimeSession) -> tuple[str, str]:
    """Who said the last thing in the SDK's history, and what."""
    item = session._history[-1]
    return item.role, " ".join(part.transcript or getattr(part, "text", "") or "" for part in item.content)  # type: ignore[union-attr]


async def test_it_holds_a_conversation_in_words_and_by_voice(spoken: House) -> None:
    async with await opened(spoken, "agent/simple@offline/rules") as session:
        await session.send_message("What is 6 times 7?")
        kinds = await to_the_end(session)
        assert "audio" in kinds
        assert last(session)[1].endswith("You said: What is 6 times 7?")
        sound = coded(said(QUESTION, after=1.2))

        async def talk() -> None:
            for start in range(0, len(sound), 4_800):
                await session.send_audio(sound[start : start + 4_800])
                await asyncio.sleep(0.1)

        talking = asyncio.create_task(talk())
        kinds = await to_the_end(session)
        await talking
        assert "audio_interrupted" in kinds, "who speaks stops the player"
        assert accuracy(QUESTION, last(session)[1].rpartition("You said: ")[2]) >= 0.85


async def test_an_agent_that_asks_is_answered_by_it(spoken: House) -> None:
    async with await opened(spoken, "agent/asker") as session:
        await session.send_message("Please send a mail")
        await to_the_end(session)
        assert last(session) == ("assistant", "May I send the mail?")
        await session.send_message("yes, go ahead")
        await to_the_end(session)
        assert last(session) == ("assistant", "That is all.")


async def test_runs_are_filed_under_what_it_traces(spoken: House) -> None:
    traced = {"workflow_name": "support", "group_id": "group-1"}
    async with await opened(spoken, "agent/simple@offline/rules", tracing=traced) as session:
        await session.send_message("Hello")
        await to_the_end(session)
    runs = (await spoken.client.get("/api/runs", params={"metadata.group_id": "group-1"})).json()["runs"]
    assert [run["metadata"] for run in runs] == [traced]
