"""A headless Chromium that opens one page of ours, with a microphone that says what a file holds."""

import asyncio
import os
import shutil
import signal
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.fakes.live_server import live
from tests.fakes.speech import RATE, spoken_pcm

REQUIRED = bool(os.environ.get("ROUTEUR_REQUIRE_CHROMIUM"))
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip
_SILENCE = b"\0\0" * (RATE * 3 // 2)  # before and after, so that turns are told apart when the file begins anew


def chromium() -> str:
    """The program. Skip the test on a machine without it; where it is required, fail it."""
    found = shutil.which("chromium")
    if found is None and REQUIRED:
        pytest.fail("ROUTEUR_REQUIRE_CHROMIUM is set, and there is no chromium")
    if found is None:
        pytest.skip("needs chromium")
    return found


@dataclass
class Page:
    """A page's server: hands out the page, and takes what comes of it."""

    html: str = ""
    url: str = ""
    result: "asyncio.Future[dict[str, Any]]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == "/result" and not self.result.done():
            self.result.set_result(orjson.loads(body))
        page = self.html.encode() if scope["path"] == "/" else b""
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(page)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": page})


@asynccontextmanager
async def page_server() -> AsyncIterator[Page]:
    """A server whose page is still to be written."""
    page = Page()
    async with live(page) as url:
        page.url = url
        yield page


def microphone(folder: Path, text: str) -> Path:
    """A file with that said, and silence around it."""
    path = folder / "speech.wav"
    with wave.open(str(path), "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(RATE)
        made.writeframes(_SILENCE + spoken_pcm(text) + _SILENCE)
    return path


async def visited(page: Page, folder: Path, speech: Path, patience: float = 60) -> dict[str, Any]:
    """What the page says of its visit; the browser is gone then."""
    process = await asyncio.create_subprocess_exec(
        chromium(),
        *_FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--use-file-for-fake-audio-capture={speech}",
        page.url,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(patience):
            return await page.result
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
