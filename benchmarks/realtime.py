"""What realtime sessions cost: `python -m benchmarks.realtime`.

A server of its own is asked for a thousand sessions that say nothing (memory each, processor share, none dropped while
they wait), then for a hundred that talk at once; every event of those is read, and must come in the order that OpenAI's
clients rely on. Then it is talked to: flite asks at the pace of speech, the embedded models hear and answer, and it is
measured how long it takes from the last sound of the question (whatever silence the server waits for is in it) to the
first sound of the answer, and where that time goes (`--svg` draws it); from a cancellation to silence; and how much of
a core a microphone takes in which nobody speaks, in a room that is not silent.
"""

import asyncio
import json
import statistics
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.processes import Server, spare_cores, started
from benchmarks.voice import WrongAnswer, as_svg, listening, spoken_questions

_PASSWORD = "correct horse battery"
_AT_ONCE = 50
_WARM = 100
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


def main(
    idle: Annotated[int, typer.Option(help="Sessions that say nothing.")] = 1_000,
    seconds: Annotated[float, typer.Option(help="How long they wait.")] = 60,
    talking: Annotated[int, typer.Option(help="Sessions that talk at once.")] = 100,
    rounds: Annotated[int, typer.Option(help="Questions of each.")] = 5,
    spoken: Annotated[int, typer.Option(help="Questions asked by voice, one after the other.")] = 20,
    vad: Annotated[str, typer.Option(help="What tells who speaks: REALTIME_VAD.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
    svg_file: Annotated[Path | None, typer.Option("--svg", help="Draw where the time of an answer goes.")] = None,
) -> None:
    """Measure and show."""
    figures = asyncio.run(_measure(idle, seconds, talking, rounds, spoken, vad))
    for name, value in figures.items():
        Console().print(f"{name}: {value:,.2f}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
    if svg_file is not None:
        svg_file.write_text(as_svg(figures))


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

            async def opened(stack: AsyncExitStack) -> ClientConnection:
                return await _open(server, token, stack)

            figures |= await spoken_questions(opened, spoken)
            figures |= await listening(opened, server.cpu_seconds)
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
