"""The whole application under a real server, and a client that is logged in."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from pydantic import SecretStr

from app import create_app, server_options
from config.settings import ProviderSettings, RateLimitSettings, SecuritySettings, Settings, StorageSettings
from core.security import PasswordHasher
from services.container import Services
from tests.fakes.live_server import live

ADMIN_PASSWORD = SecretStr("correct horse battery")


def house_settings(data_dir: Path, template: Path | None = None) -> Settings:
    """A house of its own: nothing is read from the environment. `template` is a database that is up to date already."""
    data_dir.mkdir(parents=True, exist_ok=True)
    if template is not None:
        shutil.copy(template, data_dir / "routeur.sqlite3")
    return Settings(
        storage=StorageSettings(data_dir=data_dir),
        security=SecuritySettings(admin_password=ADMIN_PASSWORD),
        providers=ProviderSettings(discover_local=False),
        rate_limits=RateLimitSettings(login_per_minute=10_000),
    )


@dataclass(frozen=True)
class House:
    """An open house: `client` is the admin's, `anyone` has no credential."""

    url: str
    app: Any
    client: httpx.AsyncClient
    anyone: httpx.AsyncClient
    tokens: dict[str, Any]

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    async def log_in(self, username: str = "admin", password: str = "", **more: str) -> httpx.Response:
        form = {"grant_type": "password", "username": username, **more}
        form["password"] = password or ADMIN_PASSWORD.get_secret_value()
        return await self.anyone.post("/auth/token", data=form)

    async def refresh(self, token: str) -> httpx.Response:
        return await self.anyone.post("/auth/token", data={"grant_type": "refresh_token", "refresh_token": token})

    async def me(self, token: str) -> httpx.Response:
        return await self.anyone.get("/auth/me", headers={"authorization": f"Bearer {token}"})

    async def add_user(self, username: str, password: str = "a good password", **more: Any) -> dict[str, Any]:
        made = await self.client.post("/users", json={"username": username, "password": password, **more})
        assert made.status_code == 201, made.text
        user: dict[str, Any] = made.json()
        return user

    async def events(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Every event of a stream, checked to be well formed."""
        async with self.client.stream("POST", "/completion/stream", json=body) as response:
            assert response.status_code == 200, await response.aread()
            return parse_events(await response.aread())


def parse_events(raw: bytes) -> list[dict[str, Any]]:
    """Server-sent events as a strict client reads them."""
    events = []
    for frame in raw.decode("utf-8").split("\n\n"):
        if not frame or frame.startswith(":"):
            continue
        fields = dict(line.split(": ", 1) for line in frame.split("\n"))
        data = orjson.loads(fields["data"])
        assert data["kind"] == fields["event"]
        assert str(data["seq"]) == fields["id"]
        events.append(data)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    return events


def text_of(events: list[dict[str, Any]]) -> str:
    """The words of all text events."""
    return "".join(event["text"] for event in events if event["kind"] == "text.delta")


def cheap_hasher() -> PasswordHasher:
    """argon2 at costs that a thousand tests can afford."""
    return PasswordHasher(memory_kib=64, rounds=1, lanes=1, at_once=8)


@asynccontextmanager
async def open_house(settings: Settings) -> AsyncIterator[House]:
    """The application of `settings`, listening, its admin logged in. Password hashes are cheap."""
    app = create_app(settings, hasher=cheap_hasher())
    async with live(app, **{**server_options(settings), "timeout_graceful_shutdown": 1}) as url:
        limits = httpx.Limits(max_connections=300)
        async with (
            httpx.AsyncClient(base_url=url, timeout=20, limits=limits) as client,
            httpx.AsyncClient(base_url=url, timeout=20, limits=limits) as anyone,
        ):
            house = House(url, app, client, anyone, {})
            answer = await house.log_in()
            assert answer.status_code == 200, answer.text
            house.tokens.update(answer.json())
            client.headers["authorization"] = f"Bearer {house.tokens['access_token']}"
            yield house
