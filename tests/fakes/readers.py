"""Readers of a run's events, as a browser's EventSource behaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import orjson

Event = dict[str, Any]


async def follow(client: httpx.AsyncClient, run_id: str, after: int | None = None) -> AsyncIterator[Event]:
    """Events of one connection. A gap is `{"kind": "gap", ...}`; nothing at all when there is no more (204)."""
    headers = {} if after is None else {"last-event-id": str(after)}
    async with client.stream("GET", f"/api/runs/{run_id}/events", headers=headers) as answer:
        if answer.status_code == 204:
            return
        if answer.status_code == 503:  # a server that stops, or whose database is away
            await asyncio.sleep(0.1)
            raise httpx.ConnectError("not now")
        assert answer.status_code == 200, await answer.aread()
        rest = ""
        async with aclosing(answer.aiter_text()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                *frames, rest = (rest + chunk).split("\n\n")
                for frame in frames:
                    fields = dict(line.split(": ", 1) for line in frame.split("\n") if not line.startswith(":"))
                    if "data" in fields:
                        yield orjson.loads(fields["data"])


async def read_to_the_end(client: httpx.AsyncClient, run_id: str, after: int | None = None) -> list[Event]:
    """Every event, reconnecting as often as the connection is lost."""
    events: list[Event] = []
    while True:
        try:
            count = len(events)
            async for event in follow(client, run_id, events[-1]["seq"] if events else after):
                events.append(event)
            if events and ends(events[-1]):
                return events
            if len(events) == count and not events:
                return events
        except httpx.HTTPError:
            continue


def ends(event: Event) -> bool:
    """True for a terminal event."""
    return event["kind"] in ("run.finished", "run.failed", "run.cancelled", "run.timed_out")
