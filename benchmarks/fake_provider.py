"""A very fast OpenAI-compatible provider: `python -m benchmarks.fake_provider PORT`.

It is a bare protocol on asyncio's own loop, because that loop hands each write to the kernel at once: uvloop gathers
the writes of one turn, and what arrives as one write and what as many would no longer be our choice. Every answer is
encoded once. It serves the benchmarks and nothing else: loopback, no TLS, one request at a time on a connection.
"""

import asyncio
import sys
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast

import httptools
import orjson

from benchmarks.speech import Speech, in_http_chunks, in_writes, speech_of

_LISTED = ("bench-20", "bench-200-burst", "bench-200-frames", "bench-50-20ms")
_MAX_BODY = 4_000_000
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Refused(Exception):
    """The request is not one that this provider answers."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeProvider(asyncio.Protocol):
    """One connection. The methods named `on_...` are called by the parser."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._writable = asyncio.Event()
        self._writable.set()
        self._speaking: asyncio.Task[None] | None = None
        self._path = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._speaking is not None:
            self._speaking.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._path = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > _MAX_BODY:
            self._transport.close()

    def on_message_complete(self) -> None:
        try:
            self._answer()
        except Refused as refusal:
            said = {"error": {"message": str(refusal), "type": "invalid_request_error", "code": None, "param": None}}
            self._transport.write(_json_response(orjson.dumps(said), refusal.status))

    def _answer(self) -> None:
        if self._path == b"/v1/models":
            self._transport.write(_models())
            return
        if self._path != b"/v1/chat/completions":
            raise Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")
        speech, stream, usage = _asked(self._body)
        if not stream:
            self._transport.write(_whole(speech))
        elif speech.pace == "burst":
            for piece in _pieces(speech, usage):
                self._transport.write(piece)
        else:
            self._speaking = asyncio.get_running_loop().create_task(self._speak(speech, _pieces(speech, usage)))

    async def _speak(self, speech: Speech, pieces: list[bytes]) -> None:
        """One write at a time, so that streams at the same moment take turns; on schedule, so that no delay adds up."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number, piece in enumerate(pieces):
            if number:
                # the end follows the last token at once
                due = begun + min(number, speech.tokens - 1) * speech.spacing
                await asyncio.sleep(max(0.0, due - loop.time()))
            await self._writable.wait()
            self._transport.write(piece)


def _asked(body: bytes) -> tuple[Speech, bool, bool]:
    """Who should speak, whether as a stream, and whether with the usage."""
    try:
        asked: dict[str, Any] = orjson.loads(body)
        speech = speech_of(asked["model"])
        stream = bool(asked.get("stream", False))
        usage = bool((asked.get("stream_options") or {}).get("include_usage", False))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "The body is not a chat completion request.") from error
    if speech is None:
        raise Refused(HTTPStatus.NOT_FOUND, "No such model; try bench-20, bench-200-frames or bench-50-20ms.")
    return speech, stream, usage


@lru_cache(maxsize=64)
def _pieces(speech: Speech, usage: bool) -> list[bytes]:
    first, *rest = in_writes(speech.pace, in_http_chunks(speech.frames(usage)))
    return [_STREAM_HEAD + first, *rest]


@lru_cache(maxsize=64)
def _whole(speech: Speech) -> bytes:
    return _json_response(speech.whole())


@lru_cache(maxsize=1)
def _models() -> bytes:
    entries = [{"id": name, "object": "model", "created": 0, "owned_by": "benchmarks"} for name in _LISTED]
    return _json_response(orjson.dumps({"object": "list", "data": entries}))


def _json_response(body: bytes, status: HTTPStatus = HTTPStatus.OK) -> bytes:
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def serve(port: int) -> None:
    """Listen on loopback until cancelled."""
    server = await asyncio.get_running_loop().create_server(FakeProvider, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
