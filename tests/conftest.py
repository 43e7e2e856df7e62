"""What every test may ask for."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The house runs on asyncio (uvicorn, aiohttp, LangGraph): so do its tests."""
    return "asyncio"
