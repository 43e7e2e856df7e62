"""Transcription by others: what each vendor is sent, how long files are cut and joined, what becomes of each fault."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import anyio
import httpx
import numpy
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import SecretStr

from config.settings import CompatibleProvider, ProviderSettings, Settings
from config.transcription_settings import TranscriptionSettings
from tests.fakes.house import House, open_house
from tests.fakes.providers import INPUT, OUTPUT, TEXT, FakeProvider, Reply
from tests.fakes.speech import file_of, need_speech

pytestmark = pytest.mark.anyio

KEY = "sk-secret-key-of-ours"
WIRES = ("openai/whisper-1", "mistral/voxtral-mini-latest", "vllm/any-whisper")
RATE = 16_000


def reaching(settings: Settings, provider: FakeProvider, *, transcription: Any = None, **more: Any) -> Settings:
    providers = ProviderSettings(
        discover_local=False,
        openai_api_key=SecretStr(KEY),
        openai_base_url=f"{provider.url}/v1",
        mistral_base_url=f"{provider.url}/mistral/v1",
        ollama_base_url=provider.url,
        compatible={"vllm": CompatibleProvider(base_url=f"{provider.url}/vllm/v1")},
        **{"total_timeout": 20.0, "max_retries": 0, **more},
    )
    chosen = TranscriptionSettings.model_validate(transcription or {"part_seconds": 4, "parallel": 2})
    return settings.model_copy(update={"providers": providers, "transcription": chosen})


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    async with open_house(reaching(shared_settings, shared_provider)) as house:
        yield house


@pytest.fixture
async def client(served: House, provider: FakeProvider) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.tokens["access_token"], max_retries=0) as made:
        yield made


def tones(*seconds: float, pause: float = 0.5) -> bytes:
    """A wav of tones of those lengths with silence after each: what may be cut where is known."""
    need_speech()
    sound = []
    for length in seconds:
        at = numpy.arange(int(length * RATE)) / RATE
        voice = sum(numpy.sin(2 * numpy.pi * 140 * k * at) / k for k in range(1, 12))
        sound += [(voice * 4_000).astype(numpy.int16), numpy.zeros(int(pause * RATE), numpy.int16)]
    return file_of(numpy.concatenate(sound).tobytes(), "wav", "pcm_s16le")


async def ask(house: House, content: bytes, path: str = "/transcription", **data: Any) -> httpx.Response:
    return await house.client.post(path, files={"file": ("memo.wav", content)}, data=data)


async def run_of(house: House, answer: httpx.Response) -> dict[str, Any]:
    run: dict[str, Any] = (await house.client.get(f"/api/runs/{answer.headers['x-run-id']}")).json()
    return run


async def newest(house: House) -> dict[str, Any]:
    found: dict[str, Any] = (await house.client.get("/api/runs?limit=1")).json()["runs"][0]
    return found


async def test_each_vendor_is_sent_its_own_form(served: House, provider: FakeProvider) -> None:
    sent = {}
    for model in WIRES:
        answer = await ask(served, tones(1.0), model=model, language="fr", response_format="verbose_json")
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == answer.headers["x-model"] == model
        form = provider.asked[-1]
        name, kind, _ = form.pop("file")
        sent[model] = (name, kind, form)
        assert provider.headers[-1]["accept-encoding"] == "identity"
    assert sent[WIRES[0]] == (
        "audio.flac",
        "audio/flac",
        {"model": ["whisper-1"], "language": ["fr"], "response_format": ["verbose_json"],
         "timestamp_granularities[]": ["segment"]},
    )  # fmt: skip
    assert sent[WIRES[1]] == (
        "audio.flac",
        "audio/flac",
        {"model": ["voxtral-mini-latest"], "language": ["fr"], "timestamp_granularities": ["segment"]},
    )
    assert sent[WIRES[2]] == (
        "audio.wav",
        "audio/wav",
        {"model": ["any-whisper"], "language": ["fr"], "response_format": ["verbose_json"],
         "timestamp_granularities[]": ["segment"]},
    )  # fmt: skip
    assert provider.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_a_long_file_is_cut_in_its_pauses_and_joined_with_the_right_times(
    client: AsyncOpenAI, served: House, provider: FakeProvider
) -> None:
    """Tones of 3 s and pauses of half a second, parts of 4 s at most: each cut must lie in a pause."""
    file = tones(3, 3, 3)
    told = await client.audio.transcriptions.create(
        model=WIRES[0], file=file, response_format="verbose_json", timestamp_granularities=["segment", "word"]
    )
    assert told.segments is not None
    assert told.words is not None
    assert provider.calls == 3
    assert told.duration == pytest.approx(10.5, abs=0.01)
    assert [segment.id for segment in told.segments] == [0, 1, 2]
    starts = [segment.start - 0.25 for segment in told.segments]
    assert starts[0] == 0
    for start, (silent, loud) in zip(starts[1:], ((3.0, 3.5), (6.5, 7.0)), strict=True):
        assert silent - 0.05 <= start <= loud + 0.05
    lengths = [float(segment.text.split()[0]) for segment in told.segments]  # what the provider says it was sent
    assert sum(lengths) == pytest.approx(10.5, abs=0.05)
    for segment, length, start in zip(told.segments, lengths, starts, strict=True):
        assert segment.end == pytest.approx(start + length - 0.25, abs=0.01)
    assert [(word.start, word.end) for word in told.words] == [(one.start, one.end) for one in told.segments]
    assert told.text == " ".join(segment.text.strip() for segment in told.segments)
    assert (told.segments[1].avg_logprob, told.segments[1].tokens) == (-0.5, [1, 2])


async def test_parts_are_sent_side_by_side_but_not_too_many(served: House, provider: FakeProvider) -> None:
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, provider.open)
            await asyncio.sleep(0.005)

    provider.default = Reply(pause=0.2)
    watching = asyncio.create_task(watch())
    answer = await ask(served, tones(3, 3, 3, 3, 3), model=WIRES[0])
    watching.cancel()
    assert answer.status_code == 200
    assert provider.calls == 5
    assert most == 2


async def test_parts_that_come_out_of_order_are_joined_in_order(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(pause=0.4))  # and the others at once
    answer = await ask(served, tones(3, 2, 1.4), model=WIRES[2])
    lengths = [float(length) for length in answer.json()["text"].split()[::2]]  # what the provider says it was sent
    assert lengths == pytest.approx([3.25, 2.5, 2.15], abs=0.3)


@pytest.mark.parametrize("model", WIRES)
@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply(status=401), 502),
        (Reply(status=429, headers={"retry-after": "7"}), 429),
        (Reply(status=500), 502),
        (Reply(status=400), 422),
        (Reply(fault="malformed"), 502),
        (Reply(fault="no_data"), 502),
        (Reply(fault="not_numbers"), 502),
        (Reply(fault="error_inside"), 502),
        (Reply(fault="html"), 502),
        (Reply(fault="gzip"), 502),
        (Reply(fault="empty_body"), 502),
    ],
    ids=lambda value: str(value.fault or value.status) if isinstance(value, Reply) else "",
)
async def test_one_part_that_fails_fails_the_whole_clearly(
    served: House, provider: FakeProvider, model: str, reply: Reply, status: int
) -> None:
    provider.then(Reply(), Reply(), reply)
    answer = await ask(served, tones(3, 3, 3, 3), model=model)
    assert answer.status_code == status, answer.text
    assert "In part" in answer.json()["detail"]
    assert KEY not in answer.text
    run = await newest(served)
    assert (run["status"], run["output"]) == ("failed", None)
    assert run["calls"] >= 2
    assert not list((served.services.settings.storage.data_dir / "uploads").iterdir())


async def test_a_part_is_tried_again_before_it_fails(settings: Settings, provider: FakeProvider) -> None:
    async with open_house(reaching(settings, provider, max_retries=2)) as house:
        provider.then(Reply(status=503), Reply(status=500))
        answer = await ask(house, tones(1.0), model=WIRES[0])
        assert answer.status_code == 200
        sizes = {len(form["file"][2]) for form in provider.asked}
        assert (provider.calls, len(sizes)) == (3, 1)  # the whole file, each time


async def test_tokens_and_minutes_are_charged(served: House, provider: FakeProvider) -> None:
    by_minute = await run_of(served, await ask(served, tones(1.5), model="openai/whisper-1"))
    assert by_minute["usage"] is None
    assert Decimal(by_minute["cost"]) == Decimal("0.006") * 2 / 60
    assert (by_minute["unpriced_calls"], by_minute["metadata"]["audio_seconds"]) == (0, 2.0)
    by_token = await run_of(served, await ask(served, tones(3, 3), model="openai/gpt-4o-mini-transcribe"))
    assert by_token["usage"]["input_tokens"] == 2 * INPUT
    assert by_token["usage"]["output_tokens"] == 2 * OUTPUT
    assert Decimal(by_token["cost"]) == 2 * (INPUT * Decimal("1.25") + OUTPUT * Decimal(5)) / 1_000_000
    unknown = await run_of(served, await ask(served, tones(1), model="vllm/any-whisper"))
    assert (unknown["calls"], unknown["usage"]["input_tokens"], unknown["cost"]) == (1, INPUT, None)


async def test_usage_has_openais_shapes(client: AsyncOpenAI) -> None:
    tokens = await client.audio.transcriptions.create(model="openai/gpt-4o-transcribe", file=tones(1))
    assert tokens.usage is not None
    assert tokens.usage.type == "tokens"
    assert (tokens.usage.input_tokens, tokens.usage.output_tokens) == (INPUT, OUTPUT)
    assert tokens.usage.input_token_details is not None
    assert tokens.usage.input_token_details.audio_tokens == INPUT - 1
    seconds = await client.audio.transcriptions.create(model="openai/whisper-1", file=tones(1))
    assert seconds.usage is not None
    assert seconds.usage.type == "duration"
    assert seconds.usage.seconds == 1.5


async def test_speakers_are_told_by_models_that_know_them(client: AsyncOpenAI, provider: FakeProvider) -> None:
    for model, speaker in (("openai/gpt-4o-transcribe-diarize", "A"), ("mistral/voxtral-mini-latest", "speaker_1")):
        told: Any = await client.audio.transcriptions.create(
            model=model, file=tones(3, 3), response_format="diarized_json", chunking_strategy="auto"
        )
        assert [segment.speaker for segment in told.segments] == [speaker, f"{speaker}-2"]
        assert [segment.id for segment in told.segments] == ["seg_000", "seg_001"]
        assert {segment.type for segment in told.segments} == {"transcript.text.segment"}
    assert provider.asked[0]["chunking_strategy"] == ["auto"]
    assert provider.asked[-1]["diarize"] == ["true"]
    kinds = []
    async for event in await client.audio.transcriptions.create(
        model="openai/gpt-4o-transcribe-diarize", file=tones(1), response_format="diarized_json", stream=True
    ):
        kinds.append(event.type)
    assert kinds == ["transcript.text.delta", "transcript.text.segment", "transcript.text.done"]


@pytest.mark.parametrize("model", ["openai/gpt-4o-transcribe", "mistral/voxtral-mini-latest"])
async def test_a_providers_own_pieces_are_handed_on(client: AsyncOpenAI, provider: FakeProvider, model: str) -> None:
    events = []
    async for event in await client.audio.transcriptions.create(model=model, file=tones(1), stream=True):
        events.append(event)
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert deltas == list(Reply().words)
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert done.text == TEXT.strip()
    assert done.usage is not None
    assert done.usage.total_tokens == INPUT + OUTPUT
    assert provider.asked[-1]["stream"] == ["true"]


@pytest.mark.parametrize("fault", ["error_inside", "no_finish"])
async def test_a_failure_in_mid_stream_is_raised_by_openais_client(
    client: AsyncOpenAI, served: House, provider: FakeProvider, fault: Any
) -> None:
    provider.default = Reply(fault=fault)
    heard = ""
    with pytest.raises(openai.APIError) as raised:  # noqa: PT012 - words come before it
        async for event in await client.audio.transcriptions.create(
            model="openai/gpt-4o-transcribe", file=tones(1), stream=True
        ):
            assert event.type == "transcript.text.delta"
            heard += event.delta
    assert heard
    assert KEY not in str(raised.value)
    run = await newest(served)
    assert (run["status"], run["output"]) == ("failed", heard)


async def test_the_native_stream_tells_its_failure_as_an_event(served: House, provider: FakeProvider) -> None:
    provider.default = Reply(fault="error_inside")
    answer = await ask(served, tones(1), model="openai/gpt-4o-transcribe", stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "event: error\ndata: {" in answer.text
    assert '"status":502' in answer.text


async def test_a_failure_before_the_first_word_of_a_stream_has_a_status(served: House, provider: FakeProvider) -> None:
    provider.default = Reply(status=503)
    answer = await ask(served, tones(1), model="openai/gpt-4o-transcribe", stream="true")
    assert answer.status_code == 502


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_ends_the_providers_work_within_a_second(
    served: House, provider: FakeProvider, streamed: bool
) -> None:
    provider.default = Reply(fault="hang_between" if streamed else "hang_before")
    folder = served.services.settings.storage.data_dir / "uploads"
    async with anyio.create_task_group() as group:
        data = {"model": "openai/gpt-4o-transcribe", "stream": str(streamed).lower()}
        group.start_soon(lambda: ask(served, tones(1), **data))
        with anyio.fail_after(10):
            await provider.begun.wait()
        group.cancel_scope.cancel()
    with anyio.fail_after(1):
        await provider.abort_seen.wait()
        while list(folder.iterdir()):  # noqa: ASYNC110 - nobody rings when a file is gone
            await anyio.sleep(0.01)
    run = await newest(served)
    assert (run["status"], run["unmeasured_calls"]) == ("cancelled", 1)


async def test_translations_go_to_whisper_and_to_nobody_else(client: AsyncOpenAI, provider: FakeProvider) -> None:
    plain = await client.audio.translations.create(model="openai/whisper-1", file=tones(1))
    assert plain.model_dump() == {"text": plain.text}
    assert provider.paths[-1] == "/v1/audio/translations"
    verbose: Any = await client.audio.translations.create(
        model="openai/whisper-1", file=tones(1), response_format="verbose_json"
    )
    assert (verbose.language, verbose.duration) == ("english", 1.5)
    for model in ("openai/gpt-4o-transcribe", "mistral/voxtral-mini-latest"):
        with pytest.raises(openai.BadRequestError, match="does not translate"):
            await client.audio.translations.create(model=model, file=tones(1))


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        ("openai/gpt-4o-transcribe", {"response_format": "srt"}, "response_format"),
        ("openai/gpt-4o-transcribe", {"response_format": "diarized_json"}, "response_format"),
        ("openai/gpt-4o-transcribe-diarize", {"prompt": "x"}, "prompt"),
        ("mistral/voxtral-mini-latest", {"prompt": "x"}, "prompt"),
        ("vllm/any", {"response_format": "diarized_json"}, "response_format"),
        ("ollama/llama3.2", {}, "model"),
    ],
)
async def test_what_a_model_cannot_do_is_refused_before_it_is_asked(
    served: House, provider: FakeProvider, model: str, fields: dict[str, str], param: str
) -> None:
    answer = await ask(served, tones(1), "/v1/audio/transcriptions", model=model, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert provider.calls == 0


async def test_the_first_configured_provider_listens_when_no_model_is_named(
    served: House, settings: Settings, provider: FakeProvider
) -> None:
    assert (await ask(served, tones(1))).json()["model"] == "openai/whisper-1"
    named = {"model": "mistral/voxtral-mini-latest"}
    async with open_house(reaching(settings, provider, transcription=named)) as house:
        assert (await ask(house, tones(1))).json()["model"] == named["model"]


async def test_a_compatible_servers_first_recogniser_is_its_default(settings: Settings, provider: FakeProvider) -> None:
    providers = ProviderSettings(
        discover_local=False, compatible={"speaches": CompatibleProvider(base_url=f"{provider.url}/v1")}
    )
    provider.models = ["some-chat", "Systran/faster-whisper-tiny"]
    try:
        async with open_house(settings.model_copy(update={"providers": providers})) as house:
            assert (await ask(house, tones(1))).json()["model"] == "speaches/Systran/faster-whisper-tiny"
            listed = {one["id"]: one["kind"] for one in (await house.client.get("/models")).json()["models"]}
            assert listed["speaches/Systran/faster-whisper-tiny"] == "transcription"
    finally:
        provider.models = ["gpt-4o-mini", "fake-large"]
