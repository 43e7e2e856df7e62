"""kill -9 in the middle of a long transcription: the next process goes on at the last parts that are done."""

import asyncio
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.fakes.fleet import ENDED, installed
from tests.fakes.hearing import SENTENCES, accuracy, recording
from tests.fakes.providers import FakeProvider, Reply
from tests.fakes.readers import follow, read_to_the_end
from tests.fakes.speech import file_of, need_speech
from tests.integration.test_transcription_providers import tones

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

PARTS = {"TRANSCRIPTION_BACKGROUND_PART_SECONDS": "3", "TRANSCRIPTION_PARALLEL": "1"}


async def submit(client: httpx.AsyncClient, name: str, content: bytes, **fields: str) -> str:
    files = {"file": (name, content)}
    answer = await client.post("/transcription", files=files, data={"background": "true", **fields})
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


async def progress_of(client: httpx.AsyncClient, run_id: str, least: int) -> None:
    """Until that many per cent are told."""
    with anyio.fail_after(60):
        async with aclosing(follow(client, run_id)) as events:  # type: ignore[type-var]
            async for event in events:
                if event["kind"] == "state.updated" and event["data"]["progress"] >= least:
                    return
    pytest.fail("it ended before")


async def ended(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    with anyio.fail_after(60):
        while True:
            run: dict[str, Any] = (await client.get(f"/api/runs/{run_id}")).json()
            if run["status"] in ENDED:
                return run
            await asyncio.sleep(0.05)


def found(folder: Path, run_id: str) -> list[Path]:
    return list(folder.rglob(f"uploads/{run_id}"))


def shares_of(events: list[dict[str, Any]]) -> list[int]:
    return [event["data"]["progress"] for event in events if event["kind"] == "state.updated"]


async def test_speech_is_heard_to_its_end_by_the_next_process(tmp_path: Path) -> None:
    need_speech()
    said = SENTENCES * 3
    file = file_of(recording(said)[0], "ogg", "libopus", rate=48_000)
    chosen = {**PARTS, "TRANSCRIPTION_BACKGROUND_PART_SECONDS": "5", "OFFLINE_SPEECH_PROCESSES": "1"}
    async with installed("embedded", tmp_path, **chosen) as house:
        run_id = await submit(house.client, "memo.ogg", file, model="offline/pocketsphinx")
        await progress_of(house.client, run_id, 20)
        house.fleet.kill("web")
        folders = found(tmp_path, run_id)
        assert len(folders) == 1, "the upload outlives its process"
        await house.fleet.start("web")
        run = await ended(house.client, run_id)
        assert (run["status"], run["attempt"]) == ("completed", 2), run
        assert accuracy(" ".join(said), run["result"]) >= 0.85, run["result"]
        events = await read_to_the_end(house.client, run_id)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        shares = shares_of(events)
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 100)
        srt = (await house.client.get(f"/transcription/{run_id}?response_format=srt")).text
        assert srt.count("-->") == len(said)
        with anyio.fail_after(1):
            while folders[0].exists():  # noqa: ASYNC110 - nobody rings when a file is gone
                await asyncio.sleep(0.01)


async def test_only_the_part_that_a_kill_interrupted_is_listened_to_again(
    tmp_path: Path, provider: FakeProvider
) -> None:
    lengths = (1.5, 1.7, 1.9, 2.1, 2.3, 2.45, 1.6, 1.8)  # of each part another one
    provider.default = Reply(pause=0.25)
    reaching = {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": f"{provider.url}/v1"}
    async with installed("embedded", tmp_path, **PARTS, **reaching) as house:
        run_id = await submit(house.client, "tones.wav", tones(*lengths), model="openai/whisper-1")
        for least in (20, 60):
            await progress_of(house.client, run_id, least)
            house.fleet.kill("web")
            await house.fleet.start("web")
        run = await ended(house.client, run_id)
        assert (run["status"], run["attempt"]) == ("completed", 3), run
        listened = Counter(form["file"][2] for form in provider.asked)
        assert len(listened) == run["result"].count("seconds") == len(lengths)
        assert sum(listened.values()) - len(lengths) <= 2, "one part for each kill"
        events = run["events"]
        assert shares_of(events) == sorted(shares_of(events))
        assert run["calls"] >= len(lengths)
