"""Model servers on this machine, recognised by what they say of themselves, never by their port alone.

Only in development (or with DISCOVER_LOCAL), only GET, only loopback, all at once and within a fraction of a second.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from core.http import Deadlines, ProviderClient
from domain.errors import RouteurError

_WITHIN = 0.4  # seconds for each question; a server on loopback answers in a few milliseconds
_NO_WAITING = Deadlines(connect=_WITHIN, retries=0)

Ask = Callable[[str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A recognised server: `vendor` is the provider file that speaks to it."""

    name: str
    vendor: str
    base_url: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """Where to look, and how to know it."""

    name: str
    vendor: str
    port: int
    path: str
    recognise: Callable[[Ask], Awaitable[bool]]


async def _is_ollama(ask: Ask) -> bool:
    tags, version = await ask("/api/tags"), await ask("/api/version")
    return (
        isinstance(tags, dict)
        and isinstance(tags.get("models"), list)
        and isinstance(version, dict)
        and "version" in version
    )


async def _is_lmstudio(ask: Ask) -> bool:
    listed = await ask("/api/v0/models")
    entries = listed.get("data") if isinstance(listed, dict) else None
    return isinstance(entries, list) and all(isinstance(entry, dict) and "state" in entry for entry in entries)


async def _is_llamacpp(ask: Ask) -> bool:
    return await _owned_by(ask, "llamacpp")


async def _is_vllm(ask: Ask) -> bool:
    return await _owned_by(ask, "vllm")


async def _owned_by(ask: Ask, owner: str) -> bool:
    listed = await ask("/v1/models")
    entries = listed.get("data") if isinstance(listed, dict) else None
    return bool(entries) and all(isinstance(entry, dict) and entry.get("owned_by") == owner for entry in entries or ())


CANDIDATES = (
    Candidate("ollama", "ollama", 11_434, "", _is_ollama),
    Candidate("lmstudio", "compatible", 1_234, "/v1", _is_lmstudio),
    Candidate("llamacpp", "compatible", 8_080, "/v1", _is_llamacpp),
    Candidate("vllm", "compatible", 8_000, "/v1", _is_vllm),
)


async def find_local_servers(
    *, leave_out_port: int | None = None, candidates: tuple[Candidate, ...] = CANDIDATES
) -> list[LocalServer]:
    """The servers that answer as one of `candidates` would; `leave_out_port` is our own."""
    found = await asyncio.gather(*(_probe(one) for one in candidates if one.port != leave_out_port))
    return [server for server in found if server is not None]


async def _probe(candidate: Candidate) -> LocalServer | None:
    address = f"http://127.0.0.1:{candidate.port}"
    client = ProviderClient(candidate.name, address, deadlines=_NO_WAITING, quiet=True)  # usually nobody is at home

    async def ask(path: str) -> Any:
        return await client.get_json(path, within=_WITHIN)

    try:
        with suppress(RouteurError):
            if await candidate.recognise(ask):
                return LocalServer(candidate.name, candidate.vendor, address + candidate.path)
        return None
    finally:
        await client.aclose()
