"""kill -9 under a realtime session whose agent waits for a yes: the next process hears it, and it is done once."""

from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.fakes.fleet import installed

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


async def said_by(connection: Any, text: str) -> str:
    """The words of the answer to that, as the official client reads them."""
    await connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    )
    await connection.response.create()
    told = ""
    async for event in connection:
        assert event.type != "error", event
        if event.type == "response.output_text.delta":
            told += event.delta
        elif event.type == "response.done":
            return told
    raise AssertionError("the connection ended")


async def test_a_question_outlives_the_process_that_asked_it(tmp_path: Path) -> None:
    async with installed("embedded", tmp_path) as house:
        base, key = str(house.client.base_url), house.client.headers["authorization"].removeprefix("Bearer ")
        async with AsyncOpenAI(base_url=f"{base.rstrip('/')}/v1", api_key=key) as client:
            async with client.realtime.connect(model="agent/asker") as connection:
                session = (await connection.recv()).session.id  # type: ignore[union-attr]
                assert (await said_by(connection, "Please send a mail")).endswith("May I send the mail?")
                house.fleet.kill("web")
            await house.fleet.start("web")
            runs = (await house.client.get("/api/runs", params={"session_id": session})).json()["runs"]
            assert [run["status"] for run in runs] == ["waiting"]
            headers = {"X-Session-Id": session}
            async with client.realtime.connect(model="agent/asker", extra_headers=headers) as connection:
                assert await said_by(connection, "Go ahead") == "May I send the mail?"  # it was not asked here
                assert await said_by(connection, "Go ahead") == "The mail is on its way.That is all."
                assert await said_by(connection, "Now do nothing") == "I see: nothing.That is all."
        lines = (await house.client.get(f"/api/sessions/{session}/messages")).json()["messages"]
        assert [line["content"] for line in lines].count("The mail is on its way.") == 1
