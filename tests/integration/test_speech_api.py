"""Speech through the door: OpenAI's own client, every vendor and form, programs of this machine, and faults."""

import array
import asyncio
import base64
import io
import itertools
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import AsyncIterator
from math import pi, sin
from typing import Any

import anyio
import httpx
import openai
import orjson
import psutil
import pytest
from openai import AsyncOpenAI
from pydantic import SecretStr

from config.routing_settings import ModelPool
from config.settings import AgentSettings, CompatibleProvider, ProviderSettings, Settings
from core.audio.resampling import AvResampler, PlainResampler
from domain.runs import ModelCall
from services.speech_engines import in_pieces
from tests.fakes.house import House, open_house
from tests.fakes.providers import OUTPUT, SOUND, SPEECH_TYPES, FakeProvider, Reply

pytestmark = pytest.mark.anyio

WIRES = ("openai", "mistral", "vllm")
FORMS = tuple(SPEECH_TYPES)
TEXT = "Good morning, this is a short test of the voice."
KEY = "sk-secret-key-of-ours"
needs_flite = pytest.mark.skipif(
    shutil.which("flite") is None and not os.environ.get("ROUTEUR_REQUIRE_AUDIO"), reason="flite is not installed"
)
needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None and not os.environ.get("ROUTEUR_REQUIRE_AUDIO"), reason="no espeak-ng"
)


def reaching(settings: Settings, provider: FakeProvider, **more: Any) -> Settings:
    providers = ProviderSettings(
        discover_local=False,
        openai_api_key=SecretStr(KEY),
        openai_base_url=f"{provider.url}/v1",
        mistral_base_url=f"{provider.url}/mistral/v1",
        ollama_base_url=provider.url,
        compatible={"vllm": CompatibleProvider(base_url=f"{provider.url}/vllm/v1")},
        **{"total_timeout": 20.0, "max_retries": 0, **more},
    )
    return settings.model_copy(update={"providers": providers})


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    async with open_house(reaching(shared_settings, shared_provider)) as house:
        yield house


@pytest.fixture
async def client(served: House) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.tokens["access_token"], max_retries=0) as made:
        yield made


async def asked(house: House, **body: Any) -> httpx.Response:
    return await house.client.post("/v1/audio/speech", json={"input": TEXT, "voice": "alloy", **body})


async def recorded(house: House) -> list[ModelCall]:
    """The calls in the record that were no part of a run, newest first."""
    user = await house.services.users.find("admin")
    async with house.services.records.reading() as work:
        return await work.model_calls.outside_runs(user.id, limit=1_000)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of a well-formed OpenAI body that tells nothing of ours."""
    assert answer.headers["content-type"] == "application/json"
    assert KEY not in answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events_of(raw: bytes) -> list[dict[str, Any]]:
    frames = [frame for frame in raw.split(b"\n\n") if frame]
    assert all(frame.startswith(b"data: ") for frame in frames)
    return [orjson.loads(frame.removeprefix(b"data: ")) for frame in frames]


def decoded(sound: bytes, form: str) -> "tuple[array.array[int], int]":
    """The samples of a file, and how many there are in a second."""
    samples = array.array("h")
    if form == "pcm":
        samples.frombytes(sound)
        return samples, 24_000
    av = pytest.importorskip("av")
    rate = 0
    with av.open(io.BytesIO(sound)) as container:
        assert len(container.streams.audio) == 1
        resampler = av.AudioResampler("s16", "mono")
        for frame in itertools.chain(container.decode(audio=0), [None]):
            for part in resampler.resample(frame):
                rate = part.sample_rate
                samples.frombytes(bytes(part.planes[0])[: part.samples * 2])
    return samples, rate


def loudness(samples: "array.array[int]") -> float:
    return float((sum(one * one for one in samples) / len(samples)) ** 0.5)


def seconds(sound: bytes, form: str = "wav") -> float:
    samples, rate = decoded(sound, form)
    return len(samples) / rate


# -- providers --


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wire", ["openai", "vllm"])
async def test_the_official_client_gets_the_providers_sound(
    client: AsyncOpenAI, provider: FakeProvider, wire: str, form: Any
) -> None:
    answer = await client.audio.speech.create(
        model=f"{wire}/tts", input=TEXT, voice="coral", response_format=form, speed=1.5, instructions="softly"
    )
    assert answer.content == b"".join(SOUND)
    assert answer.response.headers["content-type"] == SPEECH_TYPES[form]
    assert answer.response.headers["x-model"] == f"{wire}/tts"
    assert provider.asked[-1] == {
        "model": "tts", "input": TEXT, "voice": "coral", "response_format": form, "speed": 1.5,
        "instructions": "softly",
    }  # fmt: skip


async def test_mp3_is_what_comes_unasked_and_a_made_voice_is_told_by_its_id(
    client: AsyncOpenAI, provider: FakeProvider
) -> None:
    answer = await client.audio.speech.create(model="openai/tts-1", input=TEXT, voice={"id": "voice_1"})
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert provider.asked[-1] == {
        "model": "tts-1", "input": TEXT, "voice": {"id": "voice_1"}, "response_format": "mp3"
    }  # fmt: skip


async def test_the_sound_comes_while_it_is_made(client: AsyncOpenAI, provider: FakeProvider) -> None:
    provider.then(Reply(fault="hang_between"))
    with anyio.fail_after(5):
        async with client.audio.speech.with_streaming_response.create(
            model="openai/tts", input=TEXT, voice="alloy"
        ) as answer:
            got = b""
            async for piece in answer.iter_bytes():
                got += piece
                if len(got) == sum(map(len, SOUND[:3])):
                    break
    assert got == b"".join(SOUND[:3])


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini-tts", "openai/tts-1", "vllm/tts", "mistral/voxtral-tts"])
async def test_events_carry_the_same_sound_and_the_usage_where_it_is_told(
    client: AsyncOpenAI, served: House, provider: FakeProvider, model: str
) -> None:
    answer = await client.audio.speech.create(model=model, input=TEXT, voice="alloy", stream_format="sse")
    assert answer.response.headers["content-type"].startswith("text/event-stream")
    *deltas, done = events_of(answer.content)
    assert {one["type"] for one in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(one["audio"]) for one in deltas) == b"".join(SOUND)
    counts = {"input_tokens": len(TEXT), "output_tokens": OUTPUT, "total_tokens": len(TEXT) + OUTPUT}
    told = None if model == "openai/tts-1" else counts
    assert done == {"type": "speech.audio.done", "usage": told}
    usage = (await recorded(served))[0].usage
    assert (usage and usage.model_dump(include=set(counts))) == told, "what nobody counted is unknown, not zero"


async def test_mistral_is_asked_in_its_own_words_and_its_floats_become_16_bit(
    served: House, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    floats = struct.pack("<6f", 0, 0.5, -0.5, 1, 2, float("nan"))
    monkeypatch.setattr("tests.fakes.providers.SOUND", (floats[:5], floats[5:]))
    answer = await asked(served, model="mistral/voxtral", response_format="pcm")
    assert struct.unpack("<6h", answer.content) == (0, 16384, -16384, 32767, 32767, 0)
    assert provider.asked[-1] == {
        "model": "voxtral", "input": TEXT, "voice_id": "alloy", "response_format": "pcm", "stream": True
    }  # fmt: skip
    assert (await recorded(served))[0].usage is not None


@pytest.mark.parametrize(
    ("model", "more", "param"),
    [
        ("mistral/v", {"speed": 2.0}, "speed"),
        ("mistral/v", {"instructions": "x"}, "instructions"),
        ("mistral/v", {"response_format": "aac"}, "response_format"),
        ("ollama/llama", {}, "model"),
        ("offline/rules", {}, "model"),
        ("offline/hash", {}, "model"),
    ],
)
async def test_what_a_vendor_does_not_take_is_refused_by_name(
    served: House, provider: FakeProvider, model: str, more: dict[str, Any], param: str
) -> None:
    answer = await asked(served, model=model, **more)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert provider.calls == 0


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("reply", "expected", "code"),
    [
        (Reply(status=400), 400, "provider_refused"),
        (Reply(status=401), 502, "upstream_credentials"),
        (Reply(status=404), 404, "model_not_found"),
        (Reply(status=429), 429, "upstream_busy"),
        (Reply(status=500), 502, "upstream_failure"),
        (Reply(fault="html"), 502, "upstream_unreadable"),
        (Reply(fault="empty_body"), 502, "upstream_broken"),
        (Reply(fault="gzip"), 502, "upstream_unreadable"),
    ],
    ids=lambda value: str(getattr(value, "fault", None) or getattr(value, "status", value)),
)
async def test_a_provider_that_fails_at_once_is_told_by_a_status(
    served: House, provider: FakeProvider, wire: str, reply: Reply, expected: int, code: str
) -> None:
    provider.then(reply)
    answer = await asked(served, model=f"{wire}/tts")
    assert (answer.status_code, error_of(answer)["code"]) == (expected, code)


@pytest.mark.parametrize("model", ["openai/tts-1", "vllm/tts", "mistral/v"])
async def test_sound_that_breaks_off_never_looks_whole(served: House, provider: FakeProvider, model: str) -> None:
    before = len(await recorded(served))
    provider.then(Reply(fault="cut"))
    body = {"model": model, "input": TEXT, "voice": "alloy"}
    async with served.client.stream("POST", "/v1/audio/speech", json=body) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            await answer.aread()
    rows = await recorded(served)
    assert (len(rows), rows[0].usage) == (before + 1, None)


@pytest.mark.parametrize("fault", ["cut", "no_done", "error_inside"])
async def test_events_that_break_off_end_with_an_error(served: House, provider: FakeProvider, fault: Any) -> None:
    provider.then(Reply(fault=fault))
    answer = await asked(served, model="openai/gpt-tts", stream_format="sse")
    *deltas, last = events_of(answer.content)
    assert deltas
    assert last["error"]["type"] == "api_error"
    assert KEY not in answer.text


async def test_a_silent_provider_is_a_504(settings: Settings, provider: FakeProvider) -> None:
    async with open_house(reaching(settings, provider, total_timeout=0.3)) as house:
        provider.then(Reply(fault="hang_before"))
        answer = await asked(house, model="openai/tts")
        assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")


async def test_a_provider_that_falls_silent_in_the_middle_is_told_as_a_timeout(
    settings: Settings, provider: FakeProvider
) -> None:
    async with open_house(reaching(settings, provider, idle_timeout=0.3)) as house:
        provider.then(Reply(fault="hang_between"), Reply(fault="hang_between"))
        with anyio.fail_after(10):
            answer = await asked(house, model="openai/gpt-tts", stream_format="sse")
            assert events_of(answer.content)[-1]["error"]["code"] == "timeout"
            with pytest.raises(httpx.RemoteProtocolError):
                await asked(house, model="openai/gpt-tts")
        assert [row.usage for row in await recorded(house)] == [None, None]
        assert provider.open == 0


async def test_a_pool_neither_speaks_nor_embeds(settings: Settings, provider: FakeProvider) -> None:
    pool = ModelPool(deployments=[{"model": "openai/gpt-4o"}])  # type: ignore[list-item]
    async with open_house(reaching(settings, provider, model_pools={"chat": pool})) as house:
        spoken = await asked(house, model="pool/chat")
        assert (spoken.status_code, error_of(spoken)["code"]) == (400, "pool_not_supported")
        embedded = await house.client.post("/v1/embeddings", json={"model": "pool/chat", "input": "x"})
        assert (embedded.status_code, error_of(embedded)["code"]) == (400, "pool_not_supported")


async def test_the_same_key_gets_the_same_sound_without_another_call(served: House, provider: FakeProvider) -> None:
    body = {"model": "openai/tts", "input": TEXT, "voice": "alloy"}
    headers = {"idempotency-key": "speech-1"}
    first = await served.client.post("/v1/audio/speech", json=body, headers=headers)
    again = await served.client.post("/v1/audio/speech", json=body, headers=headers)
    assert first.content == again.content == b"".join(SOUND)
    assert again.headers["content-type"] == "audio/mpeg"
    assert provider.calls == 1


@pytest.mark.parametrize("fault", ["hang_before", "hang_between"])
async def test_a_client_that_leaves_ends_the_providers_call_and_is_recorded(
    served: House, provider: FakeProvider, fault: Any
) -> None:
    before = len(await recorded(served))
    provider.then(Reply(fault=fault))
    leaving = asyncio.create_task(asked(served, model="openai/tts"))
    with anyio.fail_after(10):
        await provider.begun.wait()
        leaving.cancel()
        left = time.monotonic()
        await provider.abort_seen.wait()
    assert time.monotonic() - left < 1
    await asked(served, model="openai/next")
    rows = await recorded(served)
    assert [row.model for row in rows[: len(rows) - before]] == ["openai/next", "openai/tts"]
    assert rows[1].usage is None


async def test_too_many_calls_at_once_are_told_to_come_back(settings: Settings, provider: FakeProvider) -> None:
    chosen = reaching(settings, provider).model_copy(update={"agents": AgentSettings(max_concurrent_runs=1)})
    async with open_house(chosen) as house:
        provider.then(Reply(fault="hang_between"), Reply(status=500))
        first = asyncio.create_task(asked(house, model="openai/tts"))
        with anyio.fail_after(10):
            await provider.begun.wait()
            answer = await asked(house, model="openai/tts")
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            first.cancel()
            await provider.abort_seen.wait()
            statuses = [(await asked(house, model="openai/tts")).status_code for _ in range(3)]
        assert statuses == [502, 200, 200], "every end gives its place back"


async def test_a_key_speaks_with_the_models_of_its_list_only(served: House, provider: FakeProvider) -> None:
    fenced = {"name": "fenced", "models": ["openai/tts"]}
    key = (await served.client.post("/auth/keys", json=fenced)).json()["key"]
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
        assert (await client.audio.speech.create(model="openai/tts", input="x", voice="alloy")).content
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.audio.speech.create(model="vllm/tts", input="x", voice="alloy")
    assert (caught.value.code, caught.value.param) == ("model_not_allowed", "model")


@pytest.mark.parametrize("model", ["nobody/tts", "offline/nothing", "no-such-model"])
async def test_an_unknown_model_is_404(served: House, model: str) -> None:
    answer = await asked(served, model=model)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


async def test_a_program_that_is_missing_is_named(
    settings: Settings, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.speech_engines.shutil.which", lambda _name: None)
    async with open_house(reaching(settings, provider)) as house:
        answer = await asked(house, model="offline/flite")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
        assert "Debian package flite" in answer.text
        listed = {model["id"] for model in (await house.client.get("/models")).json()["models"]}
        assert "offline/rules" in listed
        assert not {"offline/flite", "offline/espeak"} & listed


# -- what is sent --

LONG = "x" * 4_097
BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("empty", {"input": ""}, "input"),
    ("4,097 characters", {"input": LONG}, "input"),
    ("only nul", {"input": "\0"}, "input"),
    ("4,096 spaces", {"input": " " * 4_096}, "input"),
    ("half a surrogate pair", {"input": "\ud800 alone"}, "input"),
    ("a number", {"input": 5}, "input"),
    ("a list", {"input": ["x"]}, "input"),
    ("unknown format", {"response_format": "ogg"}, "response_format"),
    ("too fast", {"speed": 4.1}, "speed"),
    ("too slow", {"speed": 0.2}, "speed"),
    ("speed as text", {"speed": "1"}, "speed"),
    ("unknown field", {"language": "en"}, "language"),
    ("unknown stream format", {"stream_format": "ws"}, "stream_format"),
    ("long instructions", {"instructions": LONG}, "instructions"),
    ("model is no header", {"model": "offline/a\r\nx: 1"}, "model"),
]


@pytest.mark.parametrize(("name", "more", "param"), BODIES, ids=[name for name, _, _ in BODIES])
async def test_a_body_that_makes_no_sense_is_a_400(
    served: House, provider: FakeProvider, name: str, more: dict[str, Any], param: str
) -> None:
    body = json.dumps({"model": "openai/tts", "input": TEXT, "voice": "alloy", **more})
    answer = await served.client.post("/v1/audio/speech", content=body, headers={"content-type": "application/json"})
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert len(answer.content) < 2_000
    assert provider.calls == 0


@pytest.mark.parametrize("voice", ["", {"id": ""}, {"name": "x"}, {"id": "x", "more": 1}, 7, None])
async def test_a_voice_that_is_none_is_a_400(served: House, voice: Any) -> None:
    answer = await asked(served, model="openai/tts", voice=voice)
    assert answer.status_code == 400
    assert error_of(answer)["param"].startswith("voice")


# -- flite --


@needs_flite
@pytest.mark.parametrize("form", FORMS)
async def test_flite_speaks_in_every_form(client: AsyncOpenAI, form: Any) -> None:
    answer = await client.audio.speech.create(model="offline/flite", input=TEXT, voice="alloy", response_format=form)
    assert answer.response.headers["content-type"] == SPEECH_TYPES[form]
    samples, rate = decoded(answer.content, form)
    assert 2 < len(samples) / rate < 5
    assert loudness(samples) > 500


@needs_flite
async def test_two_voices_differ_and_openais_names_are_ours(served: House) -> None:
    made = {}
    for voice in ("slt", "nova", "rms"):
        made[voice] = (await asked(served, model="offline/flite", voice=voice, response_format="wav")).content
    assert made["slt"] == made["nova"]
    assert made["slt"] != made["rms"]


@needs_flite
@pytest.mark.parametrize(("speed", "share"), [(2, 0.5), (0.5, 2), (4, 0.25), (0.25, 4)])
async def test_speed_is_the_engines_own(served: House, speed: float, share: float) -> None:
    usual = seconds((await asked(served, model="offline/flite", response_format="wav")).content)
    other = (await asked(served, model="offline/flite", response_format="wav", speed=speed)).content
    assert seconds(other) / usual == pytest.approx(share, rel=0.15)


@needs_flite
async def test_an_unknown_voice_is_a_400_that_lists_the_voices(served: House) -> None:
    answer = await asked(served, model="offline/flite", voice="../../etc/passwd")
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, "voice", "voice_not_found")
    assert {"slt", "rms", "alloy"} <= set(error["message"].replace(",", " ").replace(".", " ").split())
    assert "passwd" not in error["message"]


@needs_flite
@pytest.mark.parametrize(
    "text",
    [
        "-o /etc/passwd", "$(id)", "`touch /tmp/x`", "a\0b", "\x1b[31m red \x07",
        "<speak><break time='9s'/>hello</speak>",
        "x", "9" * 300, "-voice http://127.0.0.1:1/evil.flitevox", "%s%n%d", "a. " * 1_365,
    ],
)  # fmt: skip
async def test_strange_text_is_only_text(served: House, text: str) -> None:
    body = {"model": "offline/flite", "input": text, "voice": "kal", "response_format": "wav", "speed": 4.0}
    answer = await served.client.post(
        "/v1/audio/speech", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200, answer.text[:300]
    assert 0.05 < seconds(answer.content) < 200


@needs_flite
@pytest.mark.parametrize("text", ["😀🎉", "مرحبا بالعالم", "...", "日本語"])
async def test_where_flite_finds_nothing_to_say_it_says_so(served: House, text: str) -> None:
    answer = await asked(served, model="offline/flite", input=text)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "nothing_to_say")


@needs_flite
async def test_flite_takes_no_instructions(served: House) -> None:
    answer = await asked(served, model="offline/flite", instructions="whisper")
    assert (answer.status_code, error_of(answer)["param"]) == (400, "instructions")


@needs_flite
async def test_flite_is_listed_as_a_demonstration_and_only_speaks(served: House) -> None:
    told = (await served.client.get("/models/offline/flite")).json()
    assert (told["kind"], told["offline"], told["available"]) == ("speech", True, True)
    assert "demonstration" in told["description"]
    chat = await served.client.post("/completion", json={"message": "x", "model": "offline/flite"})
    assert (chat.status_code, chat.json()["code"]) == (422, "not_a_chat_model")


@needs_flite
async def test_flites_words_are_counted_and_cost_nothing(served: House) -> None:
    await asked(served, model="offline/flite", input="one two three")
    row = (await recorded(served))[0]
    assert row.usage is not None
    assert (row.model, row.usage.input_tokens, row.cost_pico) == ("offline/flite", 3, 0)
    assert 'routeur_tokens_total{direction="input",model="offline/flite"}' in (await served.client.get("/metrics")).text


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if one.name().startswith(("flite", "espeak"))]


@needs_flite
async def test_leaving_kills_the_process_and_leaves_nothing_behind(served: House) -> None:
    hard = {"model": "offline/flite", "input": "9" * 4_000, "voice": "slt", "speed": 0.25}
    leaving = asyncio.create_task(asked(served, **hard))
    with anyio.fail_after(10):
        while not children():  # noqa: ASYNC110 - nothing tells when the system starts a process
            await asyncio.sleep(0.01)
        leaving.cancel()
        left = time.monotonic()
        while children():  # noqa: ASYNC110 - nor when it is gone; a zombie would stay
            await asyncio.sleep(0.01)
    assert time.monotonic() - left < 1


@needs_flite
async def test_twenty_at_once_are_served_and_nobody_else_waits(served: House) -> None:
    lags: list[float] = []

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            lags.append(time.monotonic() - before - 0.005)

    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(
        *(asked(served, model="offline/flite", response_format=FORMS[number % 6]) for number in range(20))
    )
    watching.cancel()
    assert [answer.status_code for answer in answers] == [200] * 20
    lags.sort()
    assert lags[int(len(lags) * 0.95)] < 0.05, f"the loop was late by {lags[-1]:.3f} s at the worst"


@needs_flite
async def test_a_long_text_begins_before_it_is_all_made(served: House) -> None:
    text = "The quick brown fox jumped over the lazy dog, and then it went home. " * 59
    began = time.monotonic()
    first = 0.0
    body = {"model": "offline/flite", "input": text[:4_096], "voice": "slt", "response_format": "wav"}
    async with served.client.stream("POST", "/v1/audio/speech", json=body) as answer:
        async for _piece in answer.aiter_bytes():
            first = first or time.monotonic() - began
    assert first < (time.monotonic() - began) / 3


@needs_flite
async def test_without_the_extra_wav_and_pcm_still_work(served: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    answers = {form: await asked(served, model="offline/flite", response_format=form) for form in FORMS}
    assert {form: answer.status_code for form, answer in answers.items()} == {
        **dict.fromkeys(FORMS, 503), "wav": 200, "pcm": 200
    }  # fmt: skip
    assert "--extra audio" in error_of(answers["mp3"])["message"]


# -- espeak-ng --


@needs_espeak
async def test_espeak_speaks_other_languages(served: House) -> None:
    made = {}
    for voice in ("fr", "de", "alloy"):
        answer = await asked(served, model="offline/espeak", input="Bonjour", voice=voice, response_format="wav")
        assert answer.status_code == 200, answer.text
        made[voice] = answer.content
        assert loudness(decoded(answer.content, "wav")[0]) > 500
    assert len(set(made.values())) == 3


@needs_espeak
async def test_espeak_refuses_to_crawl_and_unknown_languages(served: House) -> None:
    slow = await asked(served, model="offline/espeak", voice="fr", speed=0.25)
    assert (slow.status_code, error_of(slow)["param"]) == (400, "speed")
    unknown = await asked(served, model="offline/espeak", voice="klingon")
    assert (unknown.status_code, error_of(unknown)["code"]) == (400, "voice_not_found")
    assert " fr-fr," in unknown.text


# -- parts --


def test_a_text_is_cut_at_its_sentences_the_first_alone_and_loses_nothing() -> None:
    text = "Hello there. How are you? " + "I am well, thank you very much. " * 20 + "y" * 500
    pieces = list(in_pieces(text))
    assert pieces[0] == "Hello there."
    assert max(map(len, pieces)) <= 200
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("kind", [PlainResampler, AvResampler])
@pytest.mark.parametrize("cut", [2, 14, 1_000_000])
def test_sound_at_another_rate_is_the_same_sound_however_it_is_cut(cut: int, kind: Any) -> None:
    if kind is AvResampler:
        pytest.importorskip("av")
    tone = [round(10_000 * sin(2 * pi * 440 * one / 16_000)) for one in range(1_600)]
    pcm = struct.pack(f"<{len(tone)}h", *tone)
    resampler = kind(16_000, 24_000)
    made = b"".join(resampler.feed(pcm[start : start + cut]) for start in range(0, len(pcm), cut)) + resampler.end()
    samples = struct.unpack(f"<{len(made) // 2}h", made)
    assert abs(len(samples) - 2_400) <= 20
    wanted = [10_000 * sin(2 * pi * 440 * one / 24_000) for one in range(len(samples))]
    assert max(abs(one - two) for one, two in zip(samples[30:-30], wanted[30:-30], strict=True)) < 200
