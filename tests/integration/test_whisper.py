"""Whisper on this machine: real weights, though made by chance, loaded and run by faster-whisper."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.settings import Settings
from config.transcription_settings import TranscriptionSettings
from tests.fakes.hearing import SENTENCES, recording
from tests.fakes.house import House, open_house
from tests.fakes.speech import REQUIRED, file_of, need_speech

pytestmark = pytest.mark.anyio

MODEL = "whisper/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_speech()
    if not REQUIRED:
        pytest.importorskip("faster_whisper")
    from tests.fakes.tiny_whisper import make_tiny_whisper

    parent = tmp_path_factory.mktemp("whisper")
    make_tiny_whisper(parent / "tiny")
    (parent / "broken").mkdir()
    (parent / "broken" / "model.bin").write_bytes(b"no weights")
    (parent / "notes").mkdir()
    return parent


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, folder: Path) -> AsyncIterator[House]:
    chosen = TranscriptionSettings(whisper_models_dir=folder, whisper_at_once=2, whisper_threads=1)
    async with open_house(shared_settings.model_copy(update={"transcription": chosen})) as house:
        yield house


@pytest.fixture(scope="module")
def speech() -> bytes:
    need_speech()
    return file_of(recording(SENTENCES[:1], 0.2)[0], "flac", "flac")


async def ask(house: House, content: bytes, path: str = "/transcription", **data: Any) -> httpx.Response:
    given = {"model": MODEL, "temperature": "0", **data}
    return await house.client.post(path, files={"file": ("memo.flac", content)}, data=given, timeout=60)


async def test_its_folders_are_listed_and_others_are_not(served: House) -> None:
    listed = {one["id"]: one for one in (await served.client.get("/models")).json()["models"]}
    assert {name for name in listed if name.startswith("whisper/")} == {MODEL, "whisper/broken"}
    assert listed[MODEL]["kind"] == "transcription"
    assert (await served.client.get("/models")).json()["default_model"] == "offline/rules"  # it does not chat


async def test_it_loads_runs_and_gives_segments_and_words(served: House, speech: bytes) -> None:
    asked = {"response_format": "verbose_json", "timestamp_granularities[]": ["segment", "word"]}
    answer = await ask(served, speech, **asked)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model"], body["language"]) == (MODEL, "en")
    assert "word" in body["text"]
    assert body["segments"]
    for segment in body["segments"]:
        assert 0 <= segment["start"] <= segment["end"] <= body["duration"]
        assert segment["tokens"]
        assert segment["avg_logprob"] < 0
    assert isinstance(body["words"], list)


async def test_a_model_is_loaded_once(served: House, speech: bytes) -> None:
    answers = await asyncio.gather(*(ask(served, speech) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["text"] for answer in answers}) == 1
    ears: Any = served.services.transcription._ears["whisper"]
    assert list(ears._loaded) == ["tiny"]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"language": "fr"}, 422, "language_not_supported"),  # these weights know English only
        ({"language": "klingon"}, 422, "language_not_supported"),
        ({"model": "whisper/nobody"}, 404, "model_not_found"),
        ({"model": "whisper/../tiny"}, 404, "model_not_found"),
        ({"model": "whisper/notes"}, 404, "model_not_found"),
        ({"model": "whisper/broken"}, 503, "model_not_loaded"),
    ],
)
async def test_what_it_cannot_do_is_refused(
    served: House, folder: Path, speech: bytes, fields: dict[str, str], status: int, code: str
) -> None:
    answer = await ask(served, speech, **fields)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert str(folder) not in answer.text


async def test_english_is_not_translated_by_weights_that_know_nothing_else(served: House, speech: bytes) -> None:
    answer = await ask(served, speech, "/v1/audio/translations")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


async def test_it_does_not_chat(served: House) -> None:
    answer = await served.client.post("/completion", json={"message": "hi", "model": MODEL})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_a_chat_model")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    assert (await served.client.post("/v1/chat/completions", json=body)).status_code == 400
