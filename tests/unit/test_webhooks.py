"""Webhooks go where they may, and nowhere else; and are signed so that any library of Standard Webhooks agrees."""

import asyncio
import base64
import hashlib
import hmac
import socket
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from core.webhooks import WebhookClient, WebhookFailed, WebhookGuard, WebhookRefused
from domain.errors import InvalidRequest
from tests.fakes.live_server import live

pytestmark = pytest.mark.anyio

OUTSIDE = ["https://example.com/hook", "http://93.184.215.14/", "http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/x"]
INSIDE = [
    "http://127.0.0.1/", "http://127.1/", "http://0/", "http://localhost/", "http://x.localhost/", "http://10.1.2.3/",
    "http://172.16.0.1/", "http://192.168.0.1/", "http://169.254.169.254/latest/meta-data", "http://100.64.0.1/",
    "http://[::1]/", "http://[fe80::1]/", "http://[fd00::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:10.0.0.1]/",
    "http://0x7f.1/",
    "http://224.0.0.1/", "http://255.255.255.255/", "http://metadata.google.internal/", "http://printer.local/",
    "http://[2002:7f00:1::]/", "http://0.0.0.0:8000/",
]  # fmt: skip
WRONG = ["ftp://example.com/", "http:///x", "http://u:p@example.com/", "http://example.com:0/", "http://[::1", "x"]


@pytest.mark.parametrize("url", OUTSIDE)
def test_a_public_address_may_be_called(url: str) -> None:
    WebhookGuard().check(url)


@pytest.mark.parametrize("url", [*INSIDE, *WRONG])
def test_an_address_of_the_inside_may_not(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        WebhookGuard().check(url)
    assert caught.value.code == "webhook_refused"


@pytest.mark.parametrize("url", INSIDE)
async def test_nor_is_it_called_when_it_was_let_in_before(url: str) -> None:
    client = WebhookClient(WebhookGuard(), "secret", 2)
    with pytest.raises(WebhookRefused):
        await client.send(url, "ada", "note", b"{}")
    await client.aclose()


def test_what_the_settings_allow_may_be_called() -> None:
    guard = WebhookGuard(("10.1.0.0/16", "fd00::/8"))
    guard.check("http://10.1.2.3/")
    guard.check("http://[fd00::7]/")
    guard.check("http://[::ffff:10.1.2.3]/")
    with pytest.raises(InvalidRequest):
        guard.check("http://10.2.0.1/")


async def test_a_name_that_stands_for_the_inside_is_found_out_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS may say anything, and something else the second time: what is connected to is what was looked at."""

    def lies(host: str, port: Any, *_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port or 80))]

    monkeypatch.setattr(socket, "getaddrinfo", lies)
    client = WebhookClient(WebhookGuard(), "secret", 2)
    try:
        with pytest.raises(WebhookRefused):
            await client.send("http://rebound.example.com/hook", "ada", "note", b"{}")
    finally:
        await client.aclose()


class Listener:
    """Somebody's server, and what it heard."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.app.add_api_route("/hook", self._hook, methods=["POST"])
        self.app.add_api_route("/moved", self._moved, methods=["POST"])
        self.app.add_api_route("/status/{code}", self._status, methods=["POST"])
        self.app.add_api_route("/slow", self._slow, methods=["POST"])

    async def _hook(self, request: Request) -> Response:
        self.heard.append((dict(request.headers), await request.body()))
        return Response("x" * 1_000_000)

    async def _moved(self) -> Response:
        return RedirectResponse("/hook", status_code=307)

    async def _status(self, code: int) -> Response:
        return Response(status_code=code)

    async def _slow(self) -> Response:
        await asyncio.sleep(5)
        return Response()


async def test_a_note_is_signed_for_its_owner_and_nobody_elses_secret_fits() -> None:
    listener, client = Listener(), WebhookClient(WebhookGuard(("127.0.0.0/8",)), "server secret", 2)
    async with live(listener.app) as url:
        await client.send(f"{url}/hook", "ada", "note-1", b'{"a": 1}')
        await client.aclose()
    headers, body = listener.heard[0]
    signed = f"note-1.{headers['webhook-timestamp']}.".encode() + body

    def signature(owner: str) -> str:
        key = base64.b64decode(client.secret_of(owner).removeprefix("whsec_"))
        return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()

    assert headers["webhook-signature"] == signature("ada")
    assert headers["webhook-signature"] != signature("bob")
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "words", "final"),
    [
        ("/moved", "307", False),
        ("/status/500", "500", False),
        ("/status/410", "410", True),
        ("/slow", "no answer", False),
    ],
)
async def test_what_is_not_taken_is_a_failure_that_says_why(path: str, words: str, final: bool) -> None:
    listener, client = Listener(), WebhookClient(WebhookGuard(("127.0.0.0/8",)), "server secret", 0.3)
    async with live(listener.app) as url:
        with pytest.raises(WebhookFailed, match=words) as caught:
            await client.send(url + path, "ada", "note", b"{}")
        await client.aclose()
    assert caught.value.final is final
    assert listener.heard == [], "no redirect is followed"


async def test_an_address_where_nobody_listens_is_a_failure(unused_address: str) -> None:
    client = WebhookClient(WebhookGuard(("127.0.0.0/8",)), "server secret", 2)
    with pytest.raises(WebhookFailed, match="cannot be reached"):
        await client.send(f"{unused_address}/x", "ada", "note", b"{}")
    await client.aclose()
