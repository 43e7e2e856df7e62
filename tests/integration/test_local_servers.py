"""Model servers on this machine are known by what they say, never by their port."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from config.settings import ProviderSettings, Settings
from services.llm_service import open_llm_service
from services.local_servers import CANDIDATES, Candidate, find_local_servers
from tests.fakes.live_server import live

pytestmark = pytest.mark.anyio

PAGES: dict[str, dict[str, Any]] = {
    "ollama": {"/api/tags": {"models": [{"name": "llama3.2:3b"}]}, "/api/version": {"version": "0.13"}},
    "lmstudio": {
        "/api/v0/models": {"data": [{"id": "qwen", "state": "loaded"}]},
        "/v1/models": {"data": [{"id": "qwen"}]},
    },
    "llamacpp": {"/v1/models": {"data": [{"id": "gemma.gguf", "owned_by": "llamacpp"}]}},
    "vllm": {"/v1/models": {"data": [{"id": "meta/llama", "owned_by": "vllm", "max_model_len": 8192}]}},
}
STRANGERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "html": {"/v1/models": "<html>", "/api/tags": "<html>"},
    "another": {"/v1/models": {"data": [{"id": "x", "owned_by": "somebody"}]}, "/api/tags": {"models": "none"}},
    "empty": {"/v1/models": {"data": []}, "/api/v0/models": [], "/api/tags": []},
    "ourselves": {"/v1/models": {"object": "list", "data": [{"id": "offline/rules", "owned_by": "routeur"}]}},
}


def site(pages: dict[str, Any]) -> Any:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            assert scope["method"] == "GET", "looking changes nothing"
            page = pages.get(scope["path"])
            body = page.encode() if isinstance(page, str) else orjson.dumps(page)
            await send({"type": "http.response.start", "status": 404 if page is None else 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

    return app


def moved(url: str) -> tuple[Candidate, ...]:
    """Every candidate, looked for at the port of `url`."""
    port = int(url.rsplit(":", 1)[1])
    return tuple(Candidate(one.name, one.vendor, port, one.path, one.recognise) for one in CANDIDATES)


@pytest.fixture(params=list(PAGES))
async def server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    async with live(site(PAGES[request.param]), lifespan="off") as url:
        yield request.param, url


async def test_a_server_is_recognised_as_what_it_is(server: tuple[str, str]) -> None:
    name, url = server
    assert [found.name for found in await find_local_servers(candidates=moved(url))] == [name]


async def test_a_recognised_server_answers_by_default_in_development(server: tuple[str, str]) -> None:
    name, url = server
    async with open_llm_service(Settings(), local_candidates=moved(url)) as llm:
        assert llm.default_model_id is not None
        assert llm.default_model_id.startswith(f"{name}/")
        assert [(p.name, p.source) for p in llm.providers()] == [(name, "loopback"), ("offline", "embedded")]
    configured = Settings(providers=ProviderSettings.model_validate({"mistral_api_key": "m"}))
    async with open_llm_service(configured, local_candidates=moved(url)) as llm:
        assert llm.default_model_id == "mistral/mistral-small-latest", "what is configured comes first"


async def test_looking_can_be_switched_off(server: tuple[str, str]) -> None:
    _, url = server
    settings = Settings(providers=ProviderSettings(discover_local=False))
    async with open_llm_service(settings, local_candidates=moved(url)) as llm:
        assert llm.default_model_id == "offline/rules"


@pytest.mark.parametrize("stranger", list(STRANGERS))
async def test_a_stranger_on_a_usual_port_is_left_alone(stranger: str) -> None:
    async with live(site(STRANGERS[stranger]), lifespan="off") as url:
        assert await find_local_servers(candidates=moved(url)) == []


async def test_our_own_port_is_not_asked() -> None:
    async with live(site(PAGES["vllm"]), lifespan="off") as url:
        own = int(url.rsplit(":", 1)[1])
        assert await find_local_servers(candidates=moved(url), leave_out_port=own) == []
