"""What it takes to talk to a realtime session by voice: part of `benchmarks.realtime`, with its picture."""

import asyncio
import base64
import json
import random
import statistics
import subprocess
import tempfile
import time
import wave
from array import array
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from xml.sax.saxutils import escape

from websockets.asyncio.client import ClientConnection

from benchmarks.report import svg_head
from core.audio.resampling import resampler

_PIECE = 1_920  # bytes: 40 ms
_AUDIBLE = 300  # of 32,768
_MICROPHONES, _ROOM_SECONDS = 10, 10
_DETECTIONS: dict[str, dict[str, str] | None] = {
    "server VAD": {"type": "server_vad"},
    "semantic VAD": {"type": "semantic_vad"},
    "committed by the client": None,
}
#: What is told of a spoken question and its answer, in order, by the event that tells it.
_TOLD = {
    "turn over": "input_audio_buffer.committed",
    "words": "conversation.item.input_audio_transcription.completed",
    "answer begun": "response.created",
    "first sound": "response.output_audio.delta",
}
STEPS = tuple(_TOLD)
_COLOURS = ("#b0bec5", "#1565c0", "#6a1b9a", "#2e7d32")
_BETWEEN = ("silence, until the turn is over", "listening", "the run begins", "agent, and the first words are spoken")
_WIDTH, _LEFT, _ROW, _TOP, _BAR = 860, 190, 40, 64, 20

#: Opens a session that has been greeted.
Opened = Callable[[AsyncExitStack], Awaitable[ClientConnection]]


class WrongAnswer(Exception):
    """What came is not what must come."""


async def spoken_questions(opened: Opened, questions: int) -> dict[str, float]:
    """Milliseconds from the last sound of a question to each step of its answer, and from a cancellation to silence.

    Raises:
        WrongAnswer: something else came.
    """
    sound = await asyncio.to_thread(_question)
    figures: dict[str, float] = {"questions by voice": questions}
    for name, detection in _DETECTIONS.items():
        async with AsyncExitStack() as stack:
            wire = await opened(stack)
            session = {"type": "realtime", "output_modalities": ["audio"], "audio": {}}
            session["audio"] = {
                "input": {"turn_detection": detection, "transcription": {"model": "offline/pocketsphinx"}}
            }
            await wire.send(json.dumps({"type": "session.update", "session": session}))
            answers = [await _ask_aloud(wire, sound, commit=detection is None) for _ in range(questions + 1)][1:]
        for step in STEPS:
            figures[f"{name}: {step}, ms (median)"] = statistics.median(answer[step] for answer in answers)
        figures[f"{name}: {STEPS[-1]}, ms (worst)"] = max(answer[STEPS[-1]] for answer in answers)
    async with AsyncExitStack() as stack:
        wire = await opened(stack)
        figures["cancel to silence, ms (worst of 10)"] = 1_000 * max([await _hush(wire) for _ in range(10)])
    return figures


async def listening(opened: Opened, cpu_seconds: Callable[[], float]) -> dict[str, float]:
    """What a microphone takes into which nobody speaks.

    Raises:
        WrongAnswer: somebody was heard.
    """
    dice = random.Random(1)
    room = array("h", (round(dice.gauss(0, 20)) for _ in range(24_000 * _ROOM_SECONDS))).tobytes()
    async with AsyncExitStack() as stack:
        wires = [await opened(stack) for _ in range(_MICROPHONES)]
        await asyncio.gather(*(_send(wire, room[:_PIECE]) for wire in wires))  # whatever is loaded first
        before = cpu_seconds()
        await asyncio.gather(*(_send(wire, room) for wire in wires))
        cpu = cpu_seconds() - before
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


async def _ask_aloud(wire: ClientConnection, sound: bytes, *, commit: bool) -> dict[str, float]:
    """Milliseconds from the last sound of a question to each step."""
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
    at: dict[str, float] = {}
    try:
        while (event := json.loads(await wire.recv()))["type"] != "rate_limits.updated":
            if event["type"] == "error" or event["type"].endswith("transcription.failed"):
                raise WrongAnswer(str(event["error"]))
            at.setdefault(event["type"], time.perf_counter())
    finally:
        speaking.cancel()
        await asyncio.wait({speaking})
    if not ended or any(kind not in at for kind in _TOLD.values()):
        raise WrongAnswer("no sound")
    return {step: 1_000 * (at[kind] - ended) for step, kind in _TOLD.items()}


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


def as_svg(figures: Mapping[str, float]) -> str:
    """Where the time goes from the last sound of a question to the first of its answer, as bars. Pure."""
    rows = {name: [figures[f"{name}: {step}, ms (median)"] for step in STEPS] for name in _DETECTIONS}
    longest = max(times[-1] for times in rows.values())
    height = _TOP + _ROW * len(rows) + 40
    title = "From the last sound of a question to the first of the answer, ms (median)"
    parts = svg_head(title, height)
    for number, (name, times) in enumerate(rows.items()):
        top = _TOP + number * _ROW
        parts.append(f'<text x="{_LEFT - 10}" y="{top + 15}" text-anchor="end">{escape(name)}</text>')
        ends = [_LEFT + (_WIDTH - _LEFT - 70) * max(0.0, at) / longest for at in times]
        for begin, end, colour in zip([float(_LEFT), *ends], ends, _COLOURS, strict=False):
            width = max(0.0, end - begin)
            parts.append(f'<rect x="{begin:.1f}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{ends[-1] + 8:.1f}" y="{top + 15}" font-weight="600">{times[-1]:.0f}</text>')
    left = 16.0
    for colour, label in zip(_COLOURS, _BETWEEN, strict=True):
        parts.append(f'<rect x="{left:.0f}" y="{height - 24}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + 18:.0f}" y="{height - 14}">{escape(label)}</text>')
        left += 40 + 6.4 * len(label)
    return "\n".join([*parts, "</svg>\n"])
