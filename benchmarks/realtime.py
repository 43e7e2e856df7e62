"""What realtime sessions cost: `python -m benchmarks.realtime`.

A server of its own is asked for a thousand sessions that say nothing (memory each, processor share, none dropped while
they wait), then for a hundred that talk at once; every event of those is read, and must come in the order that OpenAI's
clients rely on. Then it is talked to: flite asks at the pace of speech, the embedded models hear and answer, and it is
measured how long it takes from the last sound of the question (whatever silence the server waits for is in it) to the
first sound of the answer, and from a cancellation to silence; and how much of a core a microphone takes in which nobody
speaks, in a room that is not silent.
"""

import asyncio
import base64
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from array import array
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.processes import Server, spare_cores, started
from core.audio.resampling import resampler

_PASSWORD = "correct horse battery"
_AT_ONCE = 50
_WARM = 100
_PIECE = 1_920  # bytes: 40 ms
_AUDIBLE = 300  # of 32,768
_MICROPHONES, _ROOM_SECONDS = 10, 10
_DETECTIONS: dict[str, dict[str, str] | None] = {
    "server VAD": {"type": "server_vad"},
    "semantic VAD": {"type": "semantic_vad"},
    "committed by the client": None,
}
_QUESTION = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is 6 times 7?"}]}
_ORDER = (
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
    "rate_limits.updated",
)


class WrongAnswer(Exception):
    """What came is not what must come."""


def main(
    idle: Annotated[int, typer.Option(help="Sessions that say nothing.")] = 1_000,
    seconds: Annotated[float, typer.Option(help="How long they wait.")] = 60,
    talking: Annotated[int, typer.Option(help="Sessions that talk at once.")] = 100,
    rounds: Annotated[int, typer.Option(help="Questions of each.")] = 5,
    spoken: Annotated[int, typer.Option(help="Questions asked by voice, one after the other.")] = 20,
    vad: Annotated[str, typer.Option(help="What tells who speaks: REALTIME_VAD.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Measure and show."""
    figures = asyncio.run(_measure(idle, seconds, talking, rounds, spoken, vad))
    for name, value in figures.items():
        Console().print(f"{name}: {value:,.2f}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


async def _measure(idle: int, seconds: float, talking: int, rounds: int, spoken: int, vad: str) -> dict[str, float]:
    environment = {
        "DATA_DIR": "{folder}",
        "ADMIN_PASSWORD": _PASSWORD,
        "DISCOVER_LOCAL": "false",
        "REALTIME_SPEECH_MODEL": "offline/flite",
        "REALTIME_VAD": vad,
        "LOG_LEVEL": "WARNING",
        "REALTIME_MAX_PER_USER": "5000",
        "REALTIME_MAX_SESSIONS": "5000",
    }
    core, _ = spare_cores()

    def serve(port: int) -> list[str]:
        return [sys.executable, "-m", "cli", "serve", "--port", str(port)]

    async with started("ours", serve, environment, core) as server:
        token = await _token(server)
        figures: dict[str, float] = {}
        if idle:
            async with AsyncExitStack() as stack:
                figures |= await _idle(server, token, stack, idle, seconds)
        if talking:
            figures |= await _talking(server, token, talking, rounds)
        if spoken:
            figures |= await _spoken(server, token, spoken)
            figures |= await _listening(server, token)
        return figures


async def _token(server: Server) -> str:
    form = {"grant_type": "password", "username": "admin", "password": _PASSWORD}
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        answer = await client.post("/auth/token", data=form)
        answer.raise_for_status()
        token: str = answer.json()["access_token"]
        return token


async def _open(server: Server, token: str, stack: AsyncExitStack) -> ClientConnection:
    wire = await stack.enter_async_context(
        connect(
            server.url.replace("http", "ws") + "/v1/realtime?model=agent/simple",
            additional_headers={"authorization": f"Bearer {token}"},
            compression=None,
            open_timeout=60,
        )
    )
    if json.loads(await wire.recv())["type"] != "session.created":
        raise WrongAnswer("no greeting")
    return wire


async def _idle(server: Server, token: str, stack: AsyncExitStack, most: int, seconds: float) -> dict[str, float]:
    async with AsyncExitStack() as gone:  # what the first ones cost once, is no cost of the next
        await asyncio.gather(*(_open(server, token, gone) for _ in range(_WARM)))
    warm = [await _open(server, token, stack) for _ in range(20)]
    before = server.rss_bytes()
    wires: list[ClientConnection] = []
    begun = time.perf_counter()
    for first in range(0, most, _AT_ONCE):
        some = range(first, min(most, first + _AT_ONCE))
        wires += await asyncio.gather(*(_open(server, token, stack) for _ in some))
    opened = time.perf_counter() - begun
    await asyncio.sleep(2)
    cpu = server.cpu_seconds()
    await asyncio.sleep(seconds)
    cpu = server.cpu_seconds() - cpu
    dropped = sum(wire.close_code is not None for wire in (*warm, *wires))
    return {
        "idle sessions": most,
        "kB each": (server.rss_bytes() - before) / most / 1_000,
        "opened in a second": most / opened,
        f"dropped in {seconds:g} s": dropped,
        "processor while idle, %": 100 * cpu / seconds,
    }


async def _talking(server: Server, token: str, most: int, rounds: int) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        wires = await asyncio.gather(*(_open(server, token, stack) for _ in range(most)))
        begun = time.perf_counter()
        firsts = await asyncio.gather(*(_talk(wire, rounds) for wire in wires))
        took = time.perf_counter() - begun
    delays = [delay for some in firsts for delay in some]
    return {
        "talking at once": most,
        "answers": most * rounds,
        "answers in a second": most * rounds / took,
        "first word, ms (median)": 1_000 * statistics.median(delays),
        "answers out of order": 0,
    }


async def _talk(wire: ClientConnection, rounds: int) -> list[float]:
    delays: list[float] = []
    for place in range(rounds):
        asked = time.perf_counter()
        await wire.send(json.dumps({"type": "conversation.item.create", "item": _QUESTION}))
        await wire.send(json.dumps({"type": "response.create"}))
        told: list[dict[str, Any]] = []
        while not told or told[-1]["type"] != "rate_limits.updated":
            told.append(json.loads(await wire.recv()))
            if told[-1]["type"] == "response.output_text.delta" and len(delays) == place:
                delays.append(time.perf_counter() - asked)
        _check(told)
    return delays


async def _spoken(server: Server, token: str, questions: int) -> dict[str, float]:
    sound = await asyncio.to_thread(_question)
    figures: dict[str, float] = {"questions by voice": questions}
    for name, detection in _DETECTIONS.items():
        async with AsyncExitStack() as stack:
            wire = await _open(server, token, stack)
            session = {"type": "realtime", "output_modalities": ["audio"], "audio": {}}
            session["audio"] = {
                "input": {"turn_detection": detection, "transcription": {"model": "offline/pocketsphinx"}}
            }
            await wire.send(json.dumps({"type": "session.update", "session": session}))
            waits = [await _ask_aloud(wire, sound, commit=detection is None) for _ in range(questions + 1)][1:]
        figures[f"end of speech to first sound, {name}, ms (median)"] = 1_000 * statistics.median(waits)
        figures[f"end of speech to first sound, {name}, ms (worst)"] = 1_000 * max(waits)
    async with AsyncExitStack() as stack:
        wire = await _open(server, token, stack)
        figures["cancel to silence, ms (worst of 10)"] = 1_000 * max([await _hush(wire) for _ in range(10)])
    return figures


async def _listening(server: Server, token: str) -> dict[str, float]:
    dice = random.Random(1)
    room = array("h", (round(dice.gauss(0, 20)) for _ in range(24_000 * _ROOM_SECONDS))).tobytes()
    async with AsyncExitStack() as stack:
        wires = [await _open(server, token, stack) for _ in range(_MICROPHONES)]
        await asyncio.gather(*(_send(wire, room[:_PIECE]) for wire in wires))  # whatever is loaded first
        before = server.cpu_seconds()
        await asyncio.gather(*(_send(wire, room) for wire in wires))
        cpu = server.cpu_seconds() - before
    return {"processor of a microphone, % of a core": 100 * cpu / _MICROPHONES / _ROOM_SECONDS}


async def _send(wire: ClientConnection, sound: bytes) -> None:
    """At the pace of the sound; all of it has been heard then."""
    begun = time.perf_counter()
    for place in range(0, len(sound), _PIECE):
        await asyncio.sleep(max(0.0, begun + place / 48_000 - time.perf_counter()))
        audio = base64.b64encode(sound[place : place + _PIECE]).decode()
        await wire.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
    await wire.send(json.dumps({"type": "input_audio_buffer.clear"}))
    told = json.loads(await wire.recv())
    if told["type"] != "input_audio_buffer.cleared":
        raise WrongAnswer(f"in a room where nobody speaks: {told['type']}")


def _question() -> bytes:
    """Somebody asks something: PCM of 24 kHz, with no silence at its end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "question.wav"
        text = "What is the capital of France?"
        subprocess.run(["flite", "-voice", "rms", "-t", text, "-o", str(out)], check=True)
        with wave.open(str(out)) as file:
            made = resampler(file.getframerate(), 24_000)
            pcm = made.feed(file.readframes(file.getnframes())) + made.end()
    samples = array("h", pcm)
    last = max(place for place, sample in enumerate(samples) if abs(sample) > _AUDIBLE)
    return bytes(14_400) + samples[: last + 1].tobytes()


async def _ask_aloud(wire: ClientConnection, sound: bytes, *, commit: bool) -> float:
    """Seconds from the last sound of a question to the first of the answer."""
    ended = 0.0

    async def speak() -> None:
        nonlocal ended
        begun = time.perf_counter()
        place = 0
        while True:
            silent = place >= len(sound)
            if silent and not ended:
                ended = time.perf_counter()
                if commit:
                    for kind in ("input_audio_buffer.commit", "response.create"):
                        await wire.send(json.dumps({"type": kind}))
                    return
            piece = bytes(_PIECE) if silent else sound[place : place + _PIECE]
            audio = base64.b64encode(piece).decode()
            await wire.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            place += _PIECE
            await asyncio.sleep(max(0.0, begun + place / 48_000 - time.perf_counter()))

    speaking = asyncio.create_task(speak())
    first = 0.0
    try:
        while (event := json.loads(await wire.recv()))["type"] != "rate_limits.updated":
            if event["type"] == "response.output_audio.delta" and not first:
                first = time.perf_counter()
            elif event["type"] == "error" or event["type"].endswith("transcription.failed"):
                raise WrongAnswer(str(event["error"]))
    finally:
        speaking.cancel()
        await asyncio.wait({speaking})
    if not first or not ended:
        raise WrongAnswer("no sound")
    return first - ended


async def _hush(wire: ClientConnection) -> float:
    """Seconds from a cancellation to the last sound that came after it."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Repeat this. " * 200}]}
    await wire.send(json.dumps({"type": "conversation.item.create", "item": item}))
    asked = {"output_modalities": ["audio"]}
    await wire.send(json.dumps({"type": "response.create", "response": asked}))
    while json.loads(await wire.recv())["type"] != "response.output_audio.delta":
        pass
    cancelled = last = time.perf_counter()
    await wire.send(json.dumps({"type": "response.cancel"}))
    while (event := json.loads(await wire.recv()))["type"] != "rate_limits.updated":
        if event["type"] == "response.output_audio.delta":
            last = time.perf_counter()
        elif event["type"] == "error":
            raise WrongAnswer(str(event["error"]))
    return last - cancelled


def _check(told: list[dict[str, Any]]) -> None:
    """Raises:
    WrongAnswer: an event is missing, or not in its place.
    """
    names = [
        event["type"] for event in told if not event["type"].startswith("conversation.item.") or "response" in event
    ]
    order = [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]
    expected = [name for name in _ORDER if not name.startswith("conversation.item.")]
    if order != expected:
        raise WrongAnswer(f"out of order: {order}")
    deltas = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
    whole = next(event["text"] for event in told if event["type"] == "response.output_text.done")
    if deltas != whole or "6 times 7" not in whole:
        raise WrongAnswer("the pieces are not the whole")


if __name__ == "__main__":
    typer.run(main)
