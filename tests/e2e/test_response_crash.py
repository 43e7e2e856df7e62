"""kill -9 under a response in the background: it is completed all the same, and read on from where one was."""

import asyncio
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest

from tests.fakes.fleet import installed

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


def events_in(raw: str) -> list[dict[str, Any]]:
    frames = [frame for frame in raw.split("\n\n") if frame.startswith("event:")]
    return [orjson.loads(frame.split("\ndata: ")[1]) for frame in frames]


async def test_a_response_is_completed_by_the_next_process(tmp_path: Path) -> None:
    async with installed("embedded", tmp_path) as house:
        body = {"model": "agent/ledger@offline/rules", "input": "go", "background": True, "metadata": {"name": "r"}}
        made = (await house.client.post("/v1/responses", json=body)).json()
        with anyio.fail_after(10):
            while not house.ledger.exists() or "r 1 done" not in house.ledger.read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        house.fleet.kill("web")
        with pytest.raises(httpx.HTTPError):
            await house.client.get(f"/v1/responses/{made['id']}")
        await house.fleet.start("web")
        whole = await house.client.get(f"/v1/responses/{made['id']}?stream=true")
        events = events_in(whole.text)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        response = (await house.client.get(f"/v1/responses/{made['id']}")).json()
        assert response["status"] == "completed"
        assert response["output"][0]["content"][0]["text"] == "r did 4 steps"
        assert {name: made[name] for name in ("id", "created_at", "model")} == {
            name: response[name] for name in ("id", "created_at", "model")
        }
        rest = await house.client.get(f"/v1/responses/{made['id']}?stream=true&starting_after=2")
        assert events_in(rest.text) == events[3:]
        steps = [line.split()[1:3] for line in house.ledger.read_text().splitlines()]
        done = [number for number, what in steps if what == "done"]
        assert list(dict.fromkeys(done)) == ["1", "2", "3", "4"]
        assert len(done) <= 5, "at most the step whose checkpoint was not yet written is done again"
