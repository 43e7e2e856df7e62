"""Uploads that are wrong, too large, or too many at once: the caller is told, nothing is left, nobody else waits."""

import asyncio
import functools
import io
import statistics
import struct
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from config.settings import Settings
from tests.fakes.hearing import SENTENCES, recording
from tests.fakes.house import House, open_house
from tests.fakes.processes import PASSWORD, address_of, serving
from tests.fakes.speech import file_of, need_speech

pytestmark = pytest.mark.anyio

DOORS = ("/transcription", "/v1/audio/transcriptions")
MODEL = "offline/pocketsphinx"


@pytest.fixture(scope="module")
async def served(shared_settings: Settings) -> AsyncIterator[House]:
    need_speech()
    async with open_house(shared_settings) as house:
        yield house


def left_behind(house: House) -> list[Path]:
    folder = house.services.settings.storage.data_dir / "uploads"
    return list(folder.iterdir()) if folder.exists() else []


def wav(rate: int = 16_000, channels: int = 1, data: bytes = b"\0\0" * 16_000, bits: int = 16) -> bytes:
    block = channels * bits // 8
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * block & 0xFFFFFFFF, block, bits)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + head + b"data" + struct.pack("<I", len(data)) + data


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sound.wav", b"\0" * 50_000_000)
    return out.getvalue()


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    rest = 0
    for byte in data:
        rest ^= byte << (bits - 8)
        for _ in range(8):
            rest = ((rest << 1) ^ (polynomial if rest >> (bits - 1) else 0)) & ((1 << bits) - 1)
    return rest


@functools.cache
def ten_hours_of_silence() -> bytes:
    """A FLAC of a few bytes for each 8 seconds: one value, for the whole of the largest block."""
    rate, block = 8_000, 65_535
    told = (rate << 44) | (15 << 36) | (10 * 3_600 * rate)  # one channel of 16 bits, and how many samples
    out = [b"fLaC\x80\0\0\x22", struct.pack(">HH", block, block), bytes(6), told.to_bytes(8, "big"), bytes(16)]
    for number in range(10 * 3_600 * rate // block):
        coded = bytes([number]) if number < 128 else bytes([0xC0 | number >> 6, 0x80 | number & 63])
        if number >= 2048:
            coded = bytes([0xE0 | number >> 12, 0x80 | number >> 6 & 63, 0x80 | number & 63])
        head = b"\xff\xf8\x74\x08" + coded + struct.pack(">H", block - 1)
        frame = head + bytes([_crc(head, 8, 0x07)]) + b"\0\0\0"
        out.append(frame + struct.pack(">H", _crc(frame, 16, 0x8005)))
    return b"".join(out)


BAD = {
    "empty": (lambda: b"", "empty"),
    "a text named wav": (lambda: b"hello, this is no sound at all\n" * 50, "not audio"),
    "a page": (lambda: b"<html><body>404</body></html>", "not audio"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 500, "not audio"),
    "a zip bomb": (zip_bomb, "not audio"),
    "a wav of no rate": (lambda: wav(rate=0), ""),
    "a wav of no channels": (lambda: wav(channels=0), ""),
    "a wav of 200 channels": (lambda: wav(channels=200), ""),
    "a wav without samples": (lambda: wav(data=b""), ""),
    "a head alone": (lambda: wav()[:30], ""),
    "a truncated mp3": (lambda: file_of(b"\0\0" * 16_000, "mp3", "libmp3lame")[:40], ""),
    "a playlist": (lambda: b"#EXTM3U\nfile:///etc/passwd\n", "not audio"),
    "10 hours of silence": (ten_hours_of_silence, "longer than"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", list(BAD))
async def test_a_bad_file_is_a_4xx_that_says_what_is_wrong(served: House, name: str, door: str) -> None:
    make, words = BAD[name]
    content = make()
    answer = await served.client.post(door, files={"file": ("memo.wav", content)}, data={"model": MODEL}, timeout=60)
    assert 400 <= answer.status_code < 500, answer.text
    body = answer.json()
    told, param = (
        (body["detail"], body["param"]) if door == DOORS[0] else (body["error"]["message"], body["error"]["param"])
    )
    assert words in told
    assert param == "file"
    assert str(served.services.settings.storage.data_dir) not in answer.text
    if door != DOORS[0] and answer.status_code != 413:
        assert answer.status_code == 400
    assert not left_behind(served)


def test_ten_hours_of_silence_are_a_small_file() -> None:
    need_speech()
    assert len(ten_hours_of_silence()) < 1_000_000


@pytest.mark.parametrize("door", DOORS)
async def test_a_bad_form_is_a_4xx_and_leaves_nothing(served: House, door: str) -> None:
    kind = {"content-type": "multipart/form-data; boundary=x"}
    one = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + wav() + b"\r\n"
    wrong = 422 if door == DOORS[0] else 400
    for headers, content, status in (
        ({"content-type": "application/json"}, b"{}", 415),
        ({}, b"hello", 415),
        ({"content-type": "multipart/form-data"}, one, wrong),
        (kind, b"--x--\r\n", wrong),
        (kind, one + one + b"--x--\r\n", wrong),
        (kind, one[:-500], wrong),
        (kind, one + b'--x\r\nContent-Disposition: form-data; name="evil"\r\n\r\n1\r\n--x--\r\n', wrong),
    ):
        answer = await served.client.post(door, headers=headers, content=content)
        assert answer.status_code == status, answer.text
        assert not left_behind(served)


@pytest.mark.parametrize("megabytes", [25.1, 26])
async def test_a_file_over_the_limit_is_a_413(served: House, megabytes: float) -> None:
    for door in DOORS:
        answer = await served.client.post(door, files={"file": ("a.wav", bytes(int(megabytes * 1e6)))}, timeout=60)
        assert answer.status_code == 413
        assert "25" in answer.text
    assert not left_behind(served)


async def test_a_client_that_leaves_in_the_middle_of_its_file_leaves_nothing(served: House) -> None:
    reader, writer = await asyncio.open_connection(*served.url.removeprefix("http://").split(":"))
    head = f"POST /transcription HTTP/1.1\r\nHost: x\r\nAuthorization: {served.client.headers['authorization']}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 9000000\r\n\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    writer.write((head + part).encode() + bytes(2_000_000))
    await writer.drain()
    async with asyncio.timeout(5):
        while not left_behind(served):  # noqa: ASYNC110 - nobody rings when a file is there
            await asyncio.sleep(0.01)
    writer.close()
    async with asyncio.timeout(1):
        while left_behind(served):  # noqa: ASYNC110 - nor when it is gone
            await asyncio.sleep(0.01)
    del reader


async def latencies(client: httpx.AsyncClient, seconds: float) -> list[float]:
    taken, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        answer = await client.get("/auth/me")
        taken.append(time.perf_counter() - began)
        assert answer.status_code == 200
        await asyncio.sleep(0.01)
    return taken


def p95(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=20)[-1]


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    """The product in a process of its own: its memory is its own, and so is its loop."""
    data = tmp_path_factory.mktemp("own")
    root = str(Path(__file__).parents[2])
    with serving(data, ADMIN_PASSWORD=PASSWORD, PYTHONPATH=root) as server:
        yield address_of(server), psutil.Process(server.process.pid)


async def token_at(url: str) -> str:
    async with httpx.AsyncClient(base_url=url) as client:
        form = {"grant_type": "password", "username": "admin", "password": PASSWORD}
        answer = await client.post("/auth/token", data=form)
        token: str = answer.json()["access_token"]
        return token


@pytest.mark.parametrize("said", [True, False], ids=["its size is told", "its size is not told"])
async def test_two_gigabytes_are_refused_in_little_memory(own_server: tuple[str, psutil.Process], said: bool) -> None:
    url, process = own_server
    token = await token_at(url)
    idle = process.memory_info().rss
    most, sent, size = 0, 0, 2_000_000_000
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, port)
    length = f"Content-Length: {size}" if said else "Transfer-Encoding: chunked"
    head = f"POST /transcription HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{length}\r\n"
    writer.write((head + "Content-Type: multipart/form-data; boundary=x\r\n\r\n").encode())
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    piece = bytes(1_000_000)
    answer = asyncio.create_task(reader.read(1_000))
    with suppress(ConnectionError):
        while sent < size and not answer.done():
            writer.write(part + piece if said else b"%x\r\n" % (len(part) + len(piece)) + part + piece + b"\r\n")
            sent, part = sent + len(piece), b""
            await writer.drain()
            most = max(most, process.memory_info().rss)
    assert (await answer).startswith(b"HTTP/1.1 413")
    assert sent < size / 10, "refused, and not read"
    writer.close()
    print(f"sent {sent / 1e6:.0f} MB, {(most - idle) / 1e6:.1f} MB over idle")
    assert most - idle < 80_000_000


async def test_twenty_uploads_at_once_hold_nobody_up(own_server: tuple[str, psutil.Process]) -> None:
    """Another request's 95th percentile is at most doubled; below 10 ms the noise of the machine is all there is."""
    url, _ = own_server
    headers = {"authorization": f"Bearer {await token_at(url)}"}
    file = file_of(recording(SENTENCES[:2], 0.5)[0], "mp3", "libmp3lame")
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:

        async def upload() -> int:
            return (await client.post("/transcription", files={"file": ("a.mp3", file)})).status_code

        assert await upload() == 200  # everything is imported
        held_up = []
        for _ in range(3):  # others at work on this machine only ever make it look worse
            before = p95(await latencies(client, 3))
            uploads = [asyncio.create_task(upload()) for _ in range(20)]
            during = await latencies(client, 3)
            while not all(one.done() for one in uploads):
                during += await latencies(client, 1)
            assert [one.result() for one in uploads] == [200] * 20
            held_up.append((p95(during), before, max(during)))
            if p95(during) <= max(2 * before, 0.01):
                return
    raise AssertionError(f"p95 while 20 files are heard, before, and the slowest of all: {held_up}")
