"""Speech through the door with the embedded recogniser: every container, every form, OpenAI's own client."""

import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import av
import httpx
import openai
import pytest
from openai import AsyncOpenAI

from config.settings import Settings
from tests.fakes.hearing import CONTAINERS, SENTENCES, Told, accuracy, recording
from tests.fakes.house import House, open_house
from tests.fakes.speech import file_of, need_speech

pytestmark = pytest.mark.anyio

MODEL = "offline/pocketsphinx"
TRUTH = " ".join(SENTENCES)


@pytest.fixture(scope="module")
def speech() -> tuple[bytes, list[Told]]:
    need_speech()
    return recording()


@pytest.fixture(scope="module")
def short() -> bytes:
    """One sentence, as a wav."""
    need_speech()
    return file_of(recording(SENTENCES[1:2], 0.2)[0], "wav", "pcm_s16le")


@pytest.fixture(scope="module")
async def served(shared_settings: Settings) -> AsyncIterator[House]:
    async with open_house(shared_settings) as house:
        yield house


@pytest.fixture
async def client(served: House) -> AsyncIterator[AsyncOpenAI]:
    key = served.tokens["access_token"]
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=120) as made:
        yield made


def uploads(house: House) -> list[Path]:
    """What lies in the folder of uploads."""
    folder = house.services.settings.storage.data_dir / "uploads"
    return list(folder.iterdir()) if folder.exists() else []


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nobody rings when a file is gone
        await anyio.sleep(0.01)


def cues(form: str, text: str) -> list[tuple[float, float, str]]:
    """Subtitles as FFmpeg reads them."""
    found = []
    with av.open(io.BytesIO(text.encode()), format=form) as opened:
        for packet in opened.demux():
            if packet.size and packet.pts is not None:
                start = float(packet.pts * packet.time_base)
                found.append((start, start + float(packet.duration * packet.time_base), bytes(packet).decode()))
    return found


@pytest.mark.parametrize("name", list(CONTAINERS))
async def test_speech_in_every_container_is_heard_through_openais_client(
    client: AsyncOpenAI, served: House, speech: tuple[bytes, list[Told]], name: str
) -> None:
    container, codec, rate = CONTAINERS[name]
    layout = "stereo" if codec == "vorbis" else "mono"
    file = file_of(speech[0], container, codec, rate=rate, layout=layout)
    answer = await client.audio.transcriptions.create(model=MODEL, file=(f"memo.{name}", file))
    assert accuracy(TRUTH, answer.text) >= 0.85, answer.text
    assert answer.usage is not None
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == pytest.approx(len(speech[0]) / 32_000, abs=0.3)
    assert not uploads(served)


async def test_times_are_the_truth_and_subtitles_are_read_by_ffmpeg(
    client: AsyncOpenAI, speech: tuple[bytes, list[Told]]
) -> None:
    pcm, told = speech
    file = file_of(pcm, "flac", "flac")
    verbose = await client.audio.transcriptions.create(
        model=MODEL, file=file, response_format="verbose_json", timestamp_granularities=["segment", "word"]
    )
    assert verbose.segments is not None
    assert verbose.words is not None
    assert len(verbose.segments) == len(told)
    for segment, truth in zip(verbose.segments, told, strict=True):
        assert segment.start == pytest.approx(truth.start, abs=0.3)
        assert segment.end == pytest.approx(truth.end, abs=0.3)
    assert [segment.id for segment in verbose.segments] == [0, 1, 2, 3]
    assert verbose.text.split() == [word.word for word in verbose.words]
    assert all(word.start < word.end for word in verbose.words)
    assert [word.start for word in verbose.words] == sorted(word.start for word in verbose.words)
    assert verbose.language == "english"
    assert float(verbose.duration) == pytest.approx(len(pcm) / 32_000, abs=0.01)
    for form, demuxer in (("srt", "srt"), ("vtt", "webvtt")):
        text = await client.audio.transcriptions.create(model=MODEL, file=file, response_format=form)  # type: ignore[call-overload]
        read = cues(demuxer, text)
        assert [said for _, _, said in read] == [segment.text for segment in verbose.segments]
        for (start, end, _), segment in zip(read, verbose.segments, strict=True):
            assert start == pytest.approx(segment.start, abs=0.002)
            assert end == pytest.approx(segment.end, abs=0.002)


async def test_each_form_has_the_type_that_openais_client_reads(served: House, short: bytes) -> None:
    for form, kind in (
        ("json", "application/json"),
        ("text", "text/plain; charset=utf-8"),
        ("srt", "text/plain; charset=utf-8"),
        ("vtt", "text/vtt; charset=utf-8"),
        ("verbose_json", "application/json"),
    ):
        answer = await post(served.client, "/v1/audio/transcriptions", short, model=MODEL, response_format=form)
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-model"] == MODEL
        if form == "verbose_json":
            body = answer.json()
            assert set(body) == {
                "task",
                "language",
                "duration",
                "text",
                "segments",
                "usage",
            }  # words were not asked for
            wanted = {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob"}
            assert set(body["segments"][0]) == wanted | {"compression_ratio", "no_speech_prob"}


async def post(
    client: httpx.AsyncClient, path: str, content: bytes, name: str = "memo.wav", **data: Any
) -> httpx.Response:
    return await client.post(path, files={"file": (name, content)}, data=data, timeout=60)


async def test_words_alone_are_given_without_segments(served: House, short: bytes) -> None:
    asked = {"model": MODEL, "response_format": "verbose_json", "timestamp_granularities[]": ["word"]}
    body = (await post(served.client, "/v1/audio/transcriptions", short, **asked)).json()
    assert "segments" not in body
    assert len(body["words"]) > 5


async def test_a_stream_tells_each_part_and_then_all(client: AsyncOpenAI, speech: tuple[bytes, list[Told]]) -> None:
    file = file_of(speech[0], "wav", "pcm_s16le")
    events = []
    async for event in await client.audio.transcriptions.create(model=MODEL, file=file, stream=True):
        events.append(event)
    assert [event.type for event in events] == ["transcript.text.delta"] * 4 + ["transcript.text.done"]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert done.text == "".join(deltas)
    assert accuracy(TRUTH, done.text) >= 0.85


async def test_the_same_sound_is_always_heard_the_same(served: House, short: bytes) -> None:
    """pocketsphinx learns from what it hears: what one caller says must not change what another is told."""
    first = (await post(served.client, "/transcription", short)).json()["text"]
    other = file_of(recording(SENTENCES[2:3], 0.5, "slt")[0], "wav", "pcm_s16le")
    await post(served.client, "/transcription", other)
    assert (await post(served.client, "/transcription", short)).json()["text"] == first


async def test_a_transcription_is_a_run_of_a_session_and_goes_on_in_it(served: House, short: bytes) -> None:
    answer = await post(served.client, "/transcription", short, "../../etc/pass\x01wd\n.wav", metadata='{"ticket": 7}')
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"run_id", "session_id", "model", "text", "language", "duration", "segments", "usage"}
    assert (answer.headers["x-run-id"], answer.headers["x-session-id"]) == (body["run_id"], body["session_id"])
    run = (await served.client.get(f"/api/runs/{body['run_id']}")).json()
    assert (run["status"], run["agent"], run["kind"], run["model"]) == ("completed", "transcription", "agent", MODEL)
    assert run["input"].startswith("[audio] ")
    assert run["input"].endswith(f" ({body['duration']:.1f} s)")
    assert "/" not in run["input"]
    assert run["output"] == body["text"]
    assert run["metadata"] == {"ticket": 7, "audio_seconds": body["duration"]}
    assert (run["usage"], run["cost"], run["unpriced_calls"]) == (None, "0", 0)
    again = await post(served.client, "/transcription", short, session_id=body["session_id"])
    assert again.json()["session_id"] == body["session_id"]
    messages = (await served.client.get(f"/api/sessions/{body['session_id']}")).json()["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    asked = {"message": "What was said?", "session_id": body["session_id"], "agent": "simple"}
    assert (await served.client.post("/completion", json=asked)).status_code == 200


async def test_somebody_elses_session_is_a_404_like_one_that_does_not_exist(served: House, short: bytes) -> None:
    mine = (await post(served.client, "/transcription", short)).json()["session_id"]
    await served.add_user("eve")
    tokens = (await served.log_in("eve", "a good password")).json()
    eve = {"authorization": f"Bearer {tokens['access_token']}"}
    told = []
    for session_id in (mine, "01a1fdf8-e3f5-774d-b43e-a94a801aa6a7"):
        files = {"file": ("a.wav", short)}
        native = await served.anyone.post("/transcription", headers=eve, files=files, data={"session_id": session_id})
        openai_form = {"model": MODEL}
        headers = {**eve, "x-session-id": session_id}
        other = await served.anyone.post("/v1/audio/transcriptions", headers=headers, files=files, data=openai_form)
        assert (native.status_code, other.status_code) == (404, 404)
        told.append((native.json()["detail"], other.json()["error"]))
    assert told[0] == told[1]
    assert not uploads(served)


async def test_a_key_without_the_scope_or_the_model_is_refused_before_anything_is_stored(
    served: House, short: bytes
) -> None:
    for wanted, status, code in (
        ({"scopes": ["completion"]}, 403, "missing_scope"),
        ({"models": ["offline/rules"]}, 403, "model_not_allowed"),
        ({"agents": ["simple"]}, 403, "agent_not_allowed"),
    ):
        made = await served.client.post("/auth/keys", json={"name": "k", **wanted})
        assert made.status_code == 201, made.text
        key = {"x-api-key": made.json()["key"]}
        answer = await served.anyone.post("/transcription", headers=key, files={"file": ("a.wav", short)})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not uploads(served)


async def test_models_that_do_not_transcribe_are_refused_by_name(
    served: House, client: AsyncOpenAI, short: bytes
) -> None:
    for model, status, param in (
        ("offline/rules", 422, "model"),
        ("offline/nobody", 404, "model"),
        ("openai/whisper-1", 404, "model"),
        ("nothing", 404, "model"),
    ):
        answer = await post(served.client, "/transcription", short, model=model)
        assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text
        if status == 404:
            assert MODEL in answer.json()["detail"]
    with pytest.raises(openai.NotFoundError) as refused:
        await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", short))
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"language": "fr"}, "language"),
        ({"prompt": "Names: Aoife"}, "prompt"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "7"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"language": "../x"}, "language"),
        ({"include[]": "logprobs"}, "include[]"),
        ({"keywords[]": "x"}, "keywords[]"),
        ({"timestamp_granularities[]": "hour"}, "timestamp_granularities[].0"),
        ({"chunking_strategy": '{"type": "server_vad"}'}, "chunking_strategy"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    served: House, short: bytes, fields: dict[str, str], param: str
) -> None:
    answer = await post(served.client, "/v1/audio/transcriptions", short, **{"model": MODEL, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert not uploads(served)


async def test_a_translation_by_a_model_that_does_not_translate_is_refused(client: AsyncOpenAI, short: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="does not translate"):
        await client.audio.translations.create(model=MODEL, file=("a.wav", short))


async def test_a_client_that_leaves_ends_the_work_and_leaves_no_file(served: House) -> None:
    need_speech()
    pcm, _ = recording(SENTENCES * 8, 0.5)
    file = file_of(pcm, "wav", "pcm_s16le")
    runs = served.services.transcription.runs
    for streamed in (False, True):
        async with anyio.create_task_group() as group:
            data = {"stream": "true"} if streamed else {}
            group.start_soon(lambda data=data: post(served.client, "/transcription", file, **data))
            with anyio.fail_after(20):
                await until(lambda: bool(runs.count))
            group.cancel_scope.cancel()
        with anyio.fail_after(1):
            await until(lambda: not runs.count and not uploads(served))
    newest = (await served.client.get("/api/runs?limit=2")).json()["runs"]
    assert [run["status"] for run in newest] == ["cancelled", "cancelled"]


async def test_a_run_that_is_cancelled_says_so(served: House) -> None:
    need_speech()
    file = file_of(recording(SENTENCES * 8, 0.5)[0], "wav", "pcm_s16le")
    answers = []

    async def ask() -> None:
        answers.append(await post(served.client, "/transcription", file))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        with anyio.fail_after(20):
            await until(lambda: bool(served.services.recorder.following))
        live = (await served.client.get("/api/runs?limit=1")).json()["runs"][0]["run_id"]
        cancelled = await served.client.post(f"/api/runs/{live}/cancel")
        assert cancelled.status_code in (200, 202), cancelled.text
    assert (answers[0].status_code, answers[0].json()["code"]) == (409, "run_cancelled")
    assert not uploads(served)


async def test_a_request_over_its_time_is_a_504(settings: Settings, short: bytes, tmp_path: Path) -> None:
    limited = settings.transcription.model_copy(update={"time_limit": 0.05})
    async with open_house(settings.model_copy(update={"transcription": limited})) as house:
        answer = await post(house.client, "/transcription", short)
        assert (answer.status_code, answer.json()["code"]) == (504, "run_timed_out")
        assert not uploads(house)


async def test_in_production_nobody_listens_unasked(settings: Settings, short: bytes) -> None:
    providers = settings.providers.model_copy(update={"offline_provider": False})
    async with open_house(settings.model_copy(update={"providers": providers})) as house:
        answer = await post(house.client, "/transcription", short)
        assert (answer.status_code, answer.json()["code"]) == (503, "no_model")
        assert "WHISPER_MODELS_DIR" in answer.json()["detail"]


async def test_the_embedded_ears_are_listed_as_a_demonstration(served: House) -> None:
    listed = {one["id"]: one for one in (await served.client.get("/models")).json()["models"]}
    assert listed[MODEL]["kind"] == "transcription"
    assert "demonstration" in listed[MODEL]["description"]
    asked = {"message": "hi", "model": MODEL}
    assert (await served.client.post("/completion", json=asked)).status_code == 422
