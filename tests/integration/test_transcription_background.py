"""Long files in the background: taken at once, told in per cent, cancelled, found again in every form, and removed."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from config.settings import Settings
from tests.contracts.storage import new_storage
from tests.engines import ENGINES
from tests.fakes.house import House, house_settings, open_house
from tests.fakes.providers import INPUT, OUTPUT, FakeProvider, Reply
from tests.integration.test_transcription_providers import WIRES, ask, reaching, tones

pytestmark = pytest.mark.anyio

ENDED = {"completed", "failed", "cancelled", "timeout", "lost"}
PARTS = {"background_part_seconds": 3, "parallel": 2}
FOUR = (1.5, 1.5, 1.5, 1.5)  # a file that is cut into four parts


@pytest.fixture(params=ENGINES, scope="module")
async def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_provider: FakeProvider
) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp(request.param)
    async with new_storage(request.param, folder) as storage:
        settings = house_settings(folder).model_copy(update={"storage": storage.storage})
        async with open_house(reaching(settings, shared_provider, transcription=PARTS)) as house:
            yield house


def uploads(house: House) -> Path:
    return house.services.settings.storage.data_dir / "uploads"


async def submit(house: House, *seconds: float, **data: Any) -> str:
    answer = await ask(house, tones(*seconds), background="true", **{"model": WIRES[0], **data})
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    assert answer.headers["location"] == f"/api/runs/{run_id}"
    return run_id


async def until(house: House, run_id: str, *states: str) -> dict[str, Any]:
    """The run, when it is in one of these states; any end, when none is named."""
    run: dict[str, Any] = {"status": ""}
    with anyio.fail_after(20):
        while run["status"] not in (states or ENDED):
            assert run["status"] not in ENDED, run
            await asyncio.sleep(0.02)
            run = (await house.client.get(f"/api/runs/{run_id}")).json()
    return run


async def until_gone(folder: Path, within: float = 1.0) -> None:
    with anyio.fail_after(within):
        while folder.exists():  # noqa: ASYNC110, ASYNC240 - nobody rings when a file is gone
            await asyncio.sleep(0.01)


async def test_a_file_in_the_background_is_told_in_per_cent_and_found_in_every_form(
    served: House, provider: FakeProvider
) -> None:
    run_id = await submit(served, *FOUR, metadata='{"dossier": "d1"}')
    run = await until(served, run_id)
    assert run["status"] == "completed", run
    assert (run["agent"], run["model"], run["metadata"]) == ("transcription", WIRES[0], {"dossier": "d1"})
    assert run["result"].count("seconds") == provider.calls == 4
    told = [event["data"] for event in run["events"] if event["kind"] == "state.updated"]
    shares = [one["progress"] for one in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1], len(shares)) == (0, 100, 3)
    assert sum(len(one["segments"]) for one in told) == 4
    assert told[-1]["seconds"] == told[-1]["duration"] == pytest.approx(8.0, abs=0.1)
    await until_gone(uploads(served) / run_id)
    verbose = (await served.client.get(f"/transcription/{run_id}?response_format=verbose_json")).json()
    assert verbose["text"] == run["result"]
    starts = [segment["start"] for segment in verbose["segments"]]
    assert starts == pytest.approx([0.25, 2.25, 4.25, 6.25], abs=0.4)
    srt = await served.client.get(f"/transcription/{run_id}?response_format=srt")
    assert (srt.headers["content-type"], srt.text.count("-->")) == ("text/plain; charset=utf-8", 4)
    vtt = await served.client.get(f"/transcription/{run_id}?response_format=vtt")
    assert vtt.text.startswith("WEBVTT")
    plain = await served.client.get(f"/transcription/{run_id}?response_format=text")
    assert plain.text == run["result"] + "\n"
    unasked = (await served.client.get(f"/transcription/{run_id}")).json()
    assert (unasked["run_id"], unasked["session_id"]) == (run_id, run["session_id"])
    assert (await served.client.get(f"/transcription/{run_id}?response_format=wav")).status_code == 422
    lines = (await served.client.get(f"/api/sessions/{run['session_id']}/messages")).json()["messages"]
    assert [line["role"] for line in lines] == ["user", "assistant"]
    assert lines[1]["content"] == run["result"]


async def test_the_form_and_the_words_of_the_request_are_kept(served: House, provider: FakeProvider) -> None:
    run_id = await submit(served, 1.0, response_format="srt")
    await until(served, run_id)
    assert "-->" in (await served.client.get(f"/transcription/{run_id}")).text
    many = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    run_id = await submit(served, 1.0, **many)
    await until(served, run_id)
    assert len((await served.client.get(f"/transcription/{run_id}")).json()["words"]) == 1


async def test_it_costs_what_it_costs_somebody_who_waits(served: House, provider: FakeProvider) -> None:
    for model in (WIRES[0], "openai/gpt-4o-mini-transcribe"):
        waited = await ask(served, tones(3.0), model=model)
        assert waited.status_code == 200
        attached = (await served.client.get(f"/api/runs/{waited.headers['x-run-id']}")).json()
        run = await until(served, await submit(served, 3.0, model=model))
        assert run["calls"] == 2 * attached["calls"] == 2
        if attached["usage"] is None:
            assert float(run["cost"]) == pytest.approx(float(attached["cost"]), rel=0.01)
            assert run["unmeasured_calls"] == 2
        else:
            assert run["usage"]["input_tokens"] == 2 * INPUT
            assert run["usage"]["output_tokens"] == 2 * OUTPUT
        assert all("cost_pico" not in event for event in run["events"])


async def test_a_model_without_times_gives_none_later(served: House, provider: FakeProvider) -> None:
    for model in ("openai/gpt-4o-transcribe", WIRES[2]):  # of a compatible server it is not known
        run_id = await submit(served, 1.0, model=model)
        run = await until(served, run_id)
        assert run["status"] == "completed", run
        refused = await served.client.get(f"/transcription/{run_id}?response_format=srt")
        assert (refused.status_code, refused.json()["param"]) == (422, "response_format")
    run_id = await submit(served, 1.0, model=WIRES[2], response_format="vtt")
    await until(served, run_id)
    assert "-->" in (await served.client.get(f"/transcription/{run_id}")).text
    with_times = await ask(
        served, tones(1.0), background="true", model="openai/gpt-4o-transcribe", response_format="srt"
    )
    assert (with_times.status_code, with_times.json()["code"]) == (422, "not_supported")


async def test_cancelled_its_upload_is_gone_within_a_second(served: House, provider: FakeProvider) -> None:
    provider.default = Reply(pause=30)
    run_id = await submit(served, *FOUR)
    folder = uploads(served) / run_id
    with anyio.fail_after(10):
        while not provider.open:  # noqa: ASYNC110 - nobody rings
            await asyncio.sleep(0.01)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(one.name for one in folder.iterdir()) == ["sound.pcm", "upload"]
    waiting = await served.client.get(f"/transcription/{run_id}")
    assert (waiting.status_code, waiting.json()["code"]) == (409, "run_in_progress")
    began = time.monotonic()
    await served.client.post(f"/api/runs/{run_id}/cancel")
    await until_gone(folder)
    assert time.monotonic() - began < 1
    run = await until(served, run_id)
    assert run["status"] == "cancelled"
    assert run["unmeasured_calls"] == 2  # whoever was listening may count it
    ended = await served.client.get(f"/transcription/{run_id}")
    assert (ended.status_code, ended.json()["code"]) == (409, "no_transcript")


async def test_cancelled_before_it_began_its_upload_is_gone_too(settings: Settings, provider: FakeProvider) -> None:
    quiet = settings.model_copy(update={"runs": settings.runs.model_copy(update={"concurrency": 0})})
    async with open_house(reaching(quiet, provider, transcription=PARTS)) as house:
        run_id = await submit(house, 1.0)
        assert (uploads(house) / run_id / "upload").is_file()
        await house.client.post(f"/api/runs/{run_id}/cancel")
        await until_gone(uploads(house) / run_id)


async def test_only_what_failed_is_asked_again(settings: Settings, provider: FakeProvider) -> None:
    async with open_house(reaching(settings, provider, transcription={**PARTS, "parallel": 1})) as house:
        provider.then(Reply(), Reply(), Reply(status=500))
        run_id = await submit(house, *FOUR)
        run = await until(house, run_id)
        assert (run["status"], provider.calls) == ("completed", 5)
        shares = [event["data"]["progress"] for event in run["events"] if event["kind"] == "state.updated"]
        assert shares == sorted(shares)
        await until_gone(uploads(house) / run_id)


async def test_a_part_before_one_that_failed_is_kept(settings: Settings, provider: FakeProvider) -> None:
    provider.then(Reply(), Reply(status=400, pause=0.2))
    in_order = settings.model_copy(update={"audio": settings.audio.model_copy(update={"threads": 1})})
    async with open_house(reaching(in_order, provider, transcription=PARTS)) as house:
        run = await until(house, await submit(house, *FOUR))
        assert (run["status"], provider.calls) == ("completed", 5)


async def test_what_the_caller_did_wrong_ends_it_and_nothing_is_left(served: House, provider: FakeProvider) -> None:
    provider.default = Reply(status=400)
    run_id = await submit(served, 1.0)
    run = await until(served, run_id)
    assert (run["status"], provider.calls) == ("failed", 1)
    await until_gone(uploads(served) / run_id)
    answer = await served.client.get(f"/transcription/{run_id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_transcript")
    again = await served.client.post(f"/api/runs/{run_id}/requeue")
    assert (again.status_code, again.json()["code"]) == (422, "agent_not_for_chat")


async def test_a_worker_without_the_file_says_so(settings: Settings, provider: FakeProvider) -> None:
    quiet = settings.model_copy(update={"runs": settings.runs.model_copy(update={"concurrency": 0})})
    async with open_house(reaching(quiet, provider, transcription=PARTS)) as house:
        run_id = await submit(house, 1.0)
        (uploads(house) / run_id / "upload").unlink()
    async with open_house(reaching(settings, provider, transcription=PARTS)) as house:
        run = await until(house, run_id)
        assert (run["status"], run["error"]["code"]) == ("failed", "upload_gone")
        assert str(uploads(house)) not in str(run)


async def test_what_a_dead_process_left_is_swept_and_what_is_wanted_stays(
    settings: Settings, provider: FakeProvider
) -> None:
    quiet = settings.model_copy(update={"runs": settings.runs.model_copy(update={"concurrency": 0})})
    async with open_house(reaching(quiet, provider, transcription=PARTS)) as house:
        wanted = await submit(house, 1.0)
        nobody = "0198c2a0-0000-7000-8000-000000000000"
        (uploads(house) / nobody).mkdir()
        young = "0198c2a0-0000-7000-8000-000000000001"
        (uploads(house) / young).mkdir()
        for folder in (wanted, nobody):
            os.utime(uploads(house) / folder, (1, 1))
    async with open_house(reaching(quiet, provider, transcription=PARTS)) as house:
        assert {one.name for one in uploads(house).iterdir()} == {wanted, young}


async def test_the_same_key_makes_one_run(served: House, provider: FakeProvider) -> None:
    async def send() -> httpx.Response:
        return await served.client.post(
            "/transcription",
            content=b"--x\r\n" + b"\r\n--x\r\n".join(_parts()) + b"\r\n--x--\r\n",
            headers={"idempotency-key": "once", "content-type": "multipart/form-data; boundary=x"},
        )

    first, second = await send(), await send()
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["run_id"] == second.json()["run_id"]
    await until(served, first.json()["run_id"])
    assert provider.calls == 1


def _parts() -> list[bytes]:
    named = {"background": "true", "model": WIRES[0]}
    fields = [f'content-disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in named.items()]
    return [*fields, b'content-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + tones(1.0)]


@pytest.mark.parametrize(
    ("content", "data", "status", "code"),
    [
        (b"no sound at all", {}, 415, "unsupported_audio"),
        (b"", {}, 422, "empty_audio"),
        (None, {"stream": "true"}, 422, None),
        (None, {"model": "openai/gpt-nothing/x", "session_id": "unknown"}, 404, None),
        (None, {"model": "nobody/x"}, 404, None),
        (None, {"webhook": "http://10.0.0.1/x"}, 422, None),
        (None, {"background": "false", "webhook": "https://example.org/x"}, 422, None),
    ],
)
async def test_bad_requests_are_refused_at_once_and_leave_nothing(
    served: House, provider: FakeProvider, content: bytes | None, data: dict[str, str], status: int, code: str | None
) -> None:
    sound = tones(1.0) if content is None else content
    answer = await ask(served, sound, **{"background": "true", "model": WIRES[0], **data})
    assert answer.status_code == status, answer.text
    assert code is None or answer.json()["code"] == code
    assert not list(uploads(served).iterdir())
    assert provider.calls == 0


async def test_somebody_elses_transcription_is_not_there(served: House, provider: FakeProvider) -> None:
    run_id = await submit(served, 1.0)
    await until(served, run_id)
    await served.add_user(f"other-{run_id[-6:]}")
    token = (await served.log_in(f"other-{run_id[-6:]}", "a good password")).json()["access_token"]
    headers = {"authorization": f"Bearer {token}"}
    stranger = await served.anyone.get(f"/transcription/{run_id}", headers=headers)
    nothing = await served.client.get("/transcription/0198c2a0-0000-7000-8000-000000000000")
    assert (stranger.status_code, nothing.status_code) == (404, 404)
    assert stranger.json()["code"] == nothing.json()["code"]
    assert (await served.anyone.get(f"/transcription/{run_id}")).status_code == 401
    chat = await served.client.post("/completion", json={"message": "hello"})
    other = await served.client.get(f"/transcription/{chat.json().get('run_id', 'x')}")
    assert other.status_code == 404


async def test_nobody_chats_with_the_agent(served: House) -> None:
    client = served.client
    by_name = {"message": "hello", "agent": "transcription"}
    for answer in (
        await client.post("/completion", json=by_name),
        await client.post("/completion/stream", json=by_name),
        await client.post("/api/agents/transcription/run", json={"input": "hello"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "agent_not_for_chat")
        assert "POST /transcription" in answer.json()["detail"]
    chat = {"model": "agent/transcription", "messages": [{"role": "user", "content": "hello"}]}
    refused = await client.post("/v1/chat/completions", json=chat)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "agent_not_for_chat")
    assert "transcription" not in {agent["id"] for agent in (await client.get("/agents")).json()["agents"]}
    models = {card["id"] for card in (await client.get("/v1/models")).json()["data"]}
    assert "agent/transcription" not in models
    assert (await client.get("/v1/models/agent/transcription")).status_code == 400


async def test_a_file_too_long_to_wait_for_is_pointed_to_the_background(
    settings: Settings, provider: FakeProvider
) -> None:
    async with open_house(reaching(settings, provider, transcription={**PARTS, "sync_seconds": 2})) as house:
        for path in ("/transcription", "/v1/audio/transcriptions"):
            answer = await ask(house, tones(3.0), path, model=WIRES[0])
            assert answer.status_code == 413, answer.text
            assert "background=true" in answer.text
        assert provider.calls == 0
        run = await until(house, await submit(house, 3.0))
        assert run["status"] == "completed"
