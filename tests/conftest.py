"""What every test may ask for."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from config.settings import Settings
from services.container import open_services
from tests.engines import ENGINES, REDIS_SERVER
from tests.fakes.house import House, cheap_hasher, house_settings, open_house
from tests.fakes.live_server import live
from tests.fakes.providers import FakeProvider


def pytest_report_header() -> str:
    """Which engines the contract tests run on."""
    return f"engines: {', '.join(ENGINES)}; redis: {REDIS_SERVER or 'none'}"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The house runs on asyncio (uvicorn, aiohttp, LangGraph): so do its tests."""
    return "asyncio"


@pytest.fixture(scope="session")
async def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its migrations and its first admin, made once and copied for each test."""
    made = house_settings(tmp_path_factory.mktemp("template"))
    async with open_services(made, hasher=cheap_hasher()) as services:
        await services.users.ensure_admin()
    return made.storage.data_dir / "routeur.sqlite3"


@pytest.fixture
def settings(tmp_path: Path, template: Path) -> Settings:
    """Settings for a house of the test's own."""
    return house_settings(tmp_path / "data", template)


@pytest.fixture(scope="module")
def shared_settings(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Settings:
    """Settings for a house that the tests of one file share, where they change nothing in it."""
    return house_settings(tmp_path_factory.mktemp("shared"), template)


@pytest.fixture(scope="module")
async def shared_provider() -> AsyncIterator[FakeProvider]:
    """A provider that speaks every wire; `provider` is the same one, its script empty."""
    fake = FakeProvider()
    async with live(fake) as url:
        fake.url = url
        yield fake


@pytest.fixture
def provider(shared_provider: FakeProvider) -> FakeProvider:
    """The provider, for one test."""
    shared_provider.reset()
    return shared_provider


@pytest.fixture
async def house(settings: Settings) -> AsyncIterator[House]:
    """The whole application under a real server, with an admin logged in."""
    async with open_house(settings) as opened:
        yield opened


@pytest.fixture
async def open_with() -> AsyncIterator[Callable[[Settings], Awaitable[House]]]:
    """Open houses with settings of the test's choosing; they close with the test."""
    async with AsyncExitStack() as stack:

        async def opener(chosen: Settings) -> House:
            return await stack.enter_async_context(open_house(chosen))

        yield opener


@pytest.fixture
def unused_address() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
