"""The parts of the benchmarks that decide what a figure means."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from xml.etree import ElementTree

import httpx
import orjson
import pytest

from benchmarks.dialects import AGENT, AGENT_STREAM, OPENAI, OPENAI_STREAM, Dialect, WrongAnswer
from benchmarks.fake_provider import FakeProvider
from benchmarks.relay import relay_to
from benchmarks.report import as_json, as_svg
from benchmarks.results import Result, Samples
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.speech import FIRST_WORD, Speech, in_http_chunks, in_writes, speech_of
from benchmarks.voice import STEPS
from benchmarks.voice import as_svg as as_voice_svg
from tests.fakes.live_server import live

pytestmark = pytest.mark.anyio

REQUEST = next(scenario for scenario in SCENARIOS if scenario.name == "request")


def said(model: str) -> Speech:
    speech = speech_of(model)
    assert speech is not None
    return speech


@pytest.mark.parametrize(
    ("model", "speech"),
    [
        ("bench-20", Speech("bench-20", 20, "burst", 0)),
        ("bench-200-burst", Speech("bench-200-burst", 200, "burst", 0)),
        ("bench-200-frames", Speech("bench-200-frames", 200, "frames", 0)),
        ("bench-50-20ms", Speech("bench-50-20ms", 50, "spaced", 0.02)),
    ],
)
def test_model_name_says_how_many_tokens_and_how_fast(model: str, speech: Speech) -> None:
    assert speech_of(model) == speech


@pytest.mark.parametrize(
    "model", ["gpt-4o", "bench-", "bench-0", "bench-10001", "bench-2-fast", "bench-2-999999ms", ""]
)
def test_other_names_are_no_models(model: str) -> None:
    assert speech_of(model) is None


def test_burst_travels_in_few_writes_and_frames_in_one_each() -> None:
    chunks = in_http_chunks(said("bench-200").frames(usage=True))
    burst, frames = in_writes("burst", chunks), in_writes("frames", chunks)
    assert b"".join(burst) == b"".join(frames)
    assert len(burst) < 5
    assert len(frames) == 200 + 3  # end, usage, [DONE]; the role is with the first token
    assert FIRST_WORD in frames[0]


async def test_unknown_model_and_rubbish_are_refused_and_the_connection_goes_on() -> None:
    async with provider() as url, httpx.AsyncClient() as client:
        unknown = await client.post(f"{url}{OPENAI.path}", json=OPENAI.body("gpt-4o"))
        rubbish = await client.post(f"{url}{OPENAI.path}", content=b"[")
        models = await client.get(f"{url}/v1/models")
    assert (unknown.status_code, rubbish.status_code, models.status_code) == (404, 400, 200)
    assert "bench-20" in [model["id"] for model in models.json()["data"]]


@pytest.mark.parametrize("model", ["bench-20", "bench-200-burst", "bench-200-frames", "bench-5-1ms"])
@pytest.mark.parametrize("dialect", [OPENAI, OPENAI_STREAM], ids=["whole", "streamed"])
async def test_what_the_provider_says_arrives_through_the_relay_byte_for_byte(model: str, dialect: Dialect) -> None:
    async with provider() as url, live(relay_to(f"{url}/v1")) as relay, httpx.AsyncClient() as client:
        direct = await client.post(f"{url}{dialect.path}", json=dialect.body(model))
        relayed = await client.post(f"{relay}{dialect.path}", json=dialect.body(model))
    dialect.check(said(model), direct.status_code, direct.content)
    assert relayed.content == direct.content
    assert relayed.headers["content-type"] == direct.headers["content-type"]


def test_lost_or_swapped_chunk_or_missing_usage_is_a_wrong_answer() -> None:
    speech = said("bench-20")
    frames = speech.frames(usage=True)
    OPENAI_STREAM.check(speech, 200, b"".join(frames))
    swapped = [*frames[:3], frames[4], frames[3], *frames[5:]]
    for wrong in (frames[:3] + frames[4:], swapped, frames[:-1], speech.frames(usage=False)):
        with pytest.raises(WrongAnswer):
            OPENAI_STREAM.check(speech, 200, b"".join(wrong))


@pytest.mark.parametrize("status", [401, 500])
def test_answer_with_an_error_status_is_wrong(status: int) -> None:
    with pytest.raises(WrongAnswer, match=str(status)):
        OPENAI.check(said("bench-20"), status, said("bench-20").whole())


def test_native_stream_with_a_hole_or_without_its_end_is_a_wrong_answer() -> None:
    speech = said("bench-3")
    frames = native_stream(speech)
    AGENT_STREAM.check(speech, 200, b": ping\n\n" + b"".join(frames))
    for wrong in (frames[:1] + frames[2:], frames[:-1], [*frames, frames[-1]], [*frames[:-1], frames[-1][:-1]]):
        with pytest.raises(WrongAnswer):
            AGENT_STREAM.check(speech, 200, b"".join(wrong))


def test_native_answer_that_counts_otherwise_is_wrong() -> None:
    answer = {"response": "w0 w1 ", "usage": {"output_tokens": 2}}
    AGENT.check(said("bench-2"), 200, orjson.dumps(answer))
    for usage in ({"output_tokens": 3}, None):
        with pytest.raises(WrongAnswer):
            AGENT.check(said("bench-2"), 200, orjson.dumps(answer | {"usage": usage}))


def test_every_scenario_has_a_model_and_a_name_of_its_own() -> None:
    assert all(scenario.speech.tokens and scenario.unit for scenario in SCENARIOS)
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_quick_keeps_what_is_open_at_once() -> None:
    quick = [scenario.quick() for scenario in SCENARIOS]
    assert all(one.requests >= one.at_once and one.relay_requests >= one.at_once for one in quick)
    assert sum(one.requests * one.rounds for one in quick) < sum(one.requests * one.rounds for one in SCENARIOS) / 2


def test_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_the_medians() -> None:
    # the machine was three times slower in the second round, for both
    found = result([1, 3, 1], [9, 30, 12])
    assert found.ratio is not None
    assert (found.ratio.median, found.ratio.low, found.ratio.high) == (10, 9, 12)
    assert found.reached is True
    assert result([1, 1, 1], [9, 11, 12]).reached is False


def test_nothing_to_divide_by_is_no_ratio_and_no_target_reached() -> None:
    found = result([0, 1], [5, 5])
    assert found.ratio is None
    assert found.reached is False


def test_picture_shows_each_ratio_and_is_well_formed() -> None:
    results = [result([1], [9]), result([1], [40]), result([1], [0.5]), result([0], [5])]
    picture = ElementTree.fromstring(as_svg(results, "ours & <others>"))
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"ours & <others>", "9.00x", "40.0x", "0.500x"} <= set(texts)
    assert texts.count(REQUEST.path) == 3


def test_picture_of_nothing_is_still_a_picture() -> None:
    assert ElementTree.fromstring(as_svg([], "nothing")).tag.endswith("svg")


def test_json_holds_the_figures_and_the_verdict() -> None:
    data = orjson.loads(as_json([result([2], [10])], {"machine": "here"}))
    assert data["machine"] == "here"
    (row,) = data["results"]
    assert (row["name"], row["ratio"]["median"], row["target"], row["reached"]) == ("request", 5, 10, True)


def result(relay: list[float], ours: list[float], scenario: Scenario = REQUEST) -> Result:
    samples = Samples()
    for pair in zip(relay, ours, strict=True):
        samples.add(pair)
    return samples.result(scenario)


def native_stream(speech: Speech) -> list[bytes]:
    events: list[dict[str, object]] = [{"kind": "run.started"}]
    events += [{"kind": "text.delta", "text": word} for word in speech.words()]
    events.append({"kind": "run.finished", "output": speech.text, "usage": {"output_tokens": speech.tokens}})
    return [
        b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, str(event["kind"]).encode(), orjson.dumps(event | {"seq": seq}))
        for seq, event in enumerate(events, start=1)
    ]


@asynccontextmanager
async def provider() -> AsyncIterator[str]:
    """The fake provider in this event loop."""
    server = await asyncio.get_running_loop().create_server(FakeProvider, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def test_the_picture_of_a_voice_shows_every_step() -> None:
    figures = {
        f"{name}: {step}, ms (median)": 100.0 * (1 + at)
        for name in ("server VAD", "semantic VAD", "committed by the client")
        for at, step in enumerate(STEPS)
    }
    drawn = ElementTree.fromstring(as_voice_svg(figures))
    bars = [float(one.attrib["width"]) for one in drawn.iter() if one.attrib.get("height") == "20"]
    assert len(bars) == 3 * len(STEPS)
    assert min(bars) == max(bars)
    assert "400" in [one.text for one in drawn.iter()]
