"""A router in a process of its own, as its users start it, and the clients that others wrote."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import pytest

from tests.fakes.live_server import live
from tests.fakes.processes import PASSWORD, address_of, serving
from tests.fakes.providers import FakeProvider

T = TypeVar("T")


@dataclass(frozen=True)
class Door:
    """Where the router listens for OpenAI's clients, and a key that it knows."""

    url: str
    key: str


class Upstream:
    """A provider that does what a test tells it, on a loop of its own: most clients here block theirs."""

    def __init__(self, fake: FakeProvider, loop: asyncio.AbstractEventLoop) -> None:
        self.fake = fake
        self._loop = loop

    def run(self, coroutine: Coroutine[Any, Any, T], within: float = 10) -> T:
        """Its result."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, within), self._loop).result()

    def reset(self) -> None:
        """As new, for the next test."""

        async def do() -> None:
            self.fake.reset()

        self.run(do())

    def aborted(self) -> bool:
        """Wait until a call of its answers has been broken off."""
        return self.run(self.fake.abort_seen.wait())


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[Upstream]:
    """The provider `fake`."""
    fake = FakeProvider()
    started: threading.Event = threading.Event()
    held: list[asyncio.AbstractEventLoop] = []
    over = asyncio.Event()

    async def serve() -> None:
        async with live(fake) as url:
            fake.url = url
            held.append(asyncio.get_running_loop())
            started.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield Upstream(fake, held[0])
    held[0].call_soon_threadsafe(over.set)
    thread.join(10)


@pytest.fixture
def upstream(shared_upstream: Upstream) -> Upstream:
    """The provider `fake`, for one test."""
    shared_upstream.reset()
    return shared_upstream


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream) -> Iterator[Door]:
    """The router: embedded defaults, and one compatible provider."""
    providers = json.dumps({"fake": {"base_url": f"{shared_upstream.fake.url}/v1"}})
    more = {"ADMIN_PASSWORD": PASSWORD, "COMPATIBLE_PROVIDERS": providers, "DEFAULT_MODEL": "offline/rules"}
    with serving(tmp_path_factory.mktemp("router"), **more) as server:
        address = address_of(server)
        server.wait_for("startup complete")
        form = {"grant_type": "password", "username": "admin", "password": PASSWORD}
        token = httpx.post(f"{address}/auth/token", data=form).json()["access_token"]
        made = httpx.post(
            f"{address}/auth/keys",
            json={"name": "clients", "scopes": ["completion"]},
            headers={"authorization": f"Bearer {token}"},
        )
        assert made.status_code == 201, made.text
        yield Door(f"{address}/v1", made.json()["key"])
