"""The outgoing client: one for each provider, pooled, bounded in time and bytes, and silent about what upstream says.

It speaks aiohttp: eight times the calls per second of httpx on the same core (docs/adr/0005). Every failure leaves
here as one of ours; a provider's own words go to the log only, because its 401 quotes our key.
"""

import asyncio
import io
import logging
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from core.logging import safe_line
from core.provider_errors import failure_of, provider_words, retry_after_of
from domain.errors import RouteurError, UpstreamFailure, UpstreamTimeout

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 4_000_000  # one event of a stream; a whole answer is rarely over 100 kB
MAX_BODY_BYTES = 64_000_000  # one answer, or one stream
MAX_ERROR_BYTES = 64_000
_LONGEST_WAIT = 10.0  # seconds we wait for a provider's Retry-After; a longer one is told to the caller
_LAST_BYTES = 0.05  # seconds for the end of the body after the last event, so that the connection can be kept
_SOCKET_OPENS = 15.0  # seconds for a WebSocket to be accepted
_SOCKET_CLOSES = 0.5  # seconds for the other side to say goodbye too
_HEARTBEAT = 20.0  # seconds between pings: how long a half-open socket is believed in
_OF_BODIES = frozenset({"content-type", "accept-encoding"})
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_OURS = _NO_CREDIT | {
    "invalid_api_key", "authentication_error", "invalid_authentication", "permission_error", "permission_denied",
    "account_deactivated", "organization_deactivated", "unauthorized", "invalid_organization", "invalid_project",
}  # fmt: skip
_LOOKS_SECRET = re.compile(r"\b(sk|rk|ek|org|proj)[-_][A-Za-z0-9*_-]{6,}|api key", re.IGNORECASE)
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: until connected, until the first byte of the answer, between two reads, and for the whole call."""

    connect: float = 5
    first_byte: float = 60
    idle: float = 30
    total: float = 600
    retries: int = 2


@dataclass(frozen=True, slots=True)
class Patience:
    """What one call may take, where that is less than its provider's deadlines: somebody else can be asked.

    Attributes:
        first_byte: seconds, all tries together.
        retries: after the first try.
    """

    first_byte: float | None = None
    retries: int | None = None


PROVIDERS_OWN = Patience()


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file of a form."""

    name: str
    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart form: texts, in their order, and one file called `file`."""

    fields: Sequence[tuple[str, str]]
    file: FormFile


class ProviderClient:
    """Calls one provider.

    Args:
        name: the provider, for messages and logs.
        base_url: without a trailing slash.
        headers: sent with each call (authorization).
        setting: what the operator should look at when the provider refuses our credentials.
        quiet: failures are expected (looking whether anybody is there) and no warning.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        deadlines: Deadlines | None = None,
        max_connections: int = 200,
        setting: str = "the provider's key",
        quiet: bool = False,
    ) -> None:
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.deadlines = deadlines or Deadlines()
        # identity: a compressed answer could unpack to a thousand times its size
        self._headers = {"accept-encoding": "identity", **(headers or {})}
        self._max_connections = max_connections
        self._setting = setting
        self._level = logging.DEBUG if quiet else logging.WARNING
        self._proxy = _proxy_for(self.base_url)
        self._session: aiohttp.ClientSession | None = None
        self._sockets: aiohttp.ClientSession | None = None  # apart: they last for an hour, and calls must find room

    async def aclose(self) -> None:
        """Close every connection."""
        for session in (self._session, self._sockets):
            if session is not None:
                await session.close()
        self._session = self._sockets = None

    async def open_socket(self, path: str, query: Mapping[str, str], *, model: str = "") -> "ProviderSocket":
        """A WebSocket at `path`. It is asked for once.

        Raises:
            RouteurError: of the upstream kinds, or ModelNotFound.
        """
        if self._sockets is None:
            self._sockets = self._new_session()
        headers = {name: value for name, value in self._headers.items() if name not in _OF_BODIES}
        try:
            async with asyncio.timeout(min(self.deadlines.connect + self.deadlines.first_byte, _SOCKET_OPENS)):
                socket = await self._sockets.ws_connect(
                    self.base_url + path,
                    params=query,
                    headers=headers,
                    proxy=self._proxy,
                    heartbeat=_HEARTBEAT,
                    max_msg_size=MAX_LINE_BYTES * 4,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_SOCKET_CLOSES),
                )
        except aiohttp.WSServerHandshakeError as error:
            raise self._failure(error.status, b"", error.headers or {}, model) from error
        except TimeoutError as error:
            raise UpstreamTimeout(f"The provider '{self.name}' did not open a socket in time.") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise self._broken(error) from error
        return ProviderSocket(self, socket)

    def is_about_us(self, code: str, said: str) -> bool:
        """True when a provider's words are about our account or key, which are nobody's business."""
        key = self._headers.get("authorization", "").removeprefix("Bearer ")
        return code in _OURS or bool(key and key in said) or bool(_LOOKS_SECRET.search(said))

    def refused_us(self, code: str, said: str) -> RouteurError:
        """The failure for such words; they go to the log."""
        body = orjson.dumps({"error": {"code": code, "message": said}})
        return self._failure(429 if code in _NO_CREDIT else 401, body, {}, "")

    def broken(self, error: Exception) -> UpstreamFailure | UpstreamTimeout:
        """The failure of a connection; what broke it goes to the log."""
        return self._broken(error)

    async def get_json(self, path: str, *, within: float) -> Any:
        """The JSON at `path`, asked for once.

        Raises:
            RouteurError: of the upstream kinds; the provider did not answer `within` that many seconds, or badly.
        """
        try:
            async with asyncio.timeout(within):
                async with self._open().get(
                    self.base_url + path, headers=self._headers, allow_redirects=False, proxy=self._proxy
                ) as response:
                    body = await self._read_whole(response)
                    if response.status != HTTPStatus.OK:
                        raise self._failure(response.status, body[:MAX_ERROR_BYTES], response.headers, "")
        except TimeoutError as error:
            raise UpstreamTimeout(f"The provider '{self.name}' did not answer within {within:g} s.") from error
        except aiohttp.ClientError as error:
            raise self._broken(error) from error
        return self._json(body)

    async def post_json(
        self, path: str, payload: Mapping[str, Any], *, model: str = "", patience: Patience = PROVIDERS_OWN
    ) -> dict[str, Any]:
        """The whole JSON answer to `payload`.

        Args:
            patience: less than the provider's deadlines give it.

        Raises:
            RouteurError: of the upstream kinds, InvalidRequest or ModelNotFound.
        """
        return (await self.post_for_bytes(path, payload, model=model, patience=patience))[1]

    async def post_for_bytes(
        self, path: str, payload: Mapping[str, Any], *, model: str = "", patience: Patience = PROVIDERS_OWN
    ) -> tuple[bytes, dict[str, Any]]:
        """The whole answer as it came, and as JSON. Raises as `post_json`."""
        # a whole answer is silent until it is there
        body_of = partial(_json_data, payload)
        async with self._answered(path, body_of, model, self.deadlines.total, patience) as (response, first, _clock):
            body = first + await self._read_whole(response)
        answer = self._json(body)
        if not isinstance(answer, dict):
            raise self.unreadable("not a JSON object")
        return body, answer

    async def post_form(self, path: str, form: Form, *, model: str = "") -> dict[str, Any]:
        """The whole JSON answer to a multipart form. Deadlines and failures as with `post_json`."""
        answered = self._answered(path, partial(_form_data, form), model, self.deadlines.total, PROVIDERS_OWN)
        async with answered as (response, first, _clock):
            body = first + await self._read_whole(response)
        answer = self._json(body)
        if not isinstance(answer, dict):
            raise self.unreadable("not a JSON object")
        return answer

    @asynccontextmanager
    async def stream_form(self, path: str, form: Form, *, model: str = "") -> AsyncIterator[AsyncIterator[list[bytes]]]:
        """The answer to a multipart form as it comes, as `stream_lines` gives it."""
        # what is heard must be listened to from its beginning to its end: the first byte may take long
        answered = self._answered(path, partial(_form_data, form), model, self.deadlines.total, PROVIDERS_OWN)
        async with answered as (response, first, clock):
            yield _Lines(_Reads(self, response, first, clock))
            await _read_last_bytes(response)

    @asynccontextmanager
    async def stream_lines(
        self, path: str, payload: Mapping[str, Any], *, model: str = "", patience: Patience = PROVIDERS_OWN
    ) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        """The answer to `payload` as it comes: lists of whole lines, one list for each read of the socket.

        Leaving the context closes the connection, or keeps it when the answer has been read to its end.

        Args:
            patience: less than the provider's deadlines give it.

        Raises:
            RouteurError: as `post_json`; also while iterating, when the stream breaks, drips or hangs.
        """
        async with self.stream_reads(path, payload, model=model, patience=patience) as reads:
            yield _Lines(reads)

    @asynccontextmanager
    async def stream_reads(
        self, path: str, payload: Mapping[str, Any], *, model: str = "", patience: Patience = PROVIDERS_OWN
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """As `stream_lines`, the lines of each read in one piece."""
        answered = self._answered(path, partial(_json_data, payload), model, self.deadlines.first_byte, patience)
        async with answered as (response, first, clock):
            yield _Reads(self, response, first, clock)
            await _read_last_bytes(response)

    @asynccontextmanager
    async def stream_bytes(
        self, path: str, payload: Mapping[str, Any], *, model: str = "", patience: Patience = PROVIDERS_OWN
    ) -> AsyncIterator["ByteStream"]:
        """The answer to `payload` as it comes, whatever it is. For the rest, as `stream_lines`.

        Raises:
            RouteurError: as `post_json`; also while iterating, when the stream breaks, drips or hangs.
        """
        answered = self._answered(path, partial(_json_data, payload), model, self.deadlines.first_byte, patience)
        async with answered as (response, first, clock):
            yield ByteStream(self, response, first, clock)
            await _read_last_bytes(response)

    def unreadable(self, why: str) -> UpstreamFailure:
        """The failure of an answer that makes no sense; `why` goes to the log."""
        logger.log(
            self._level, "provider sent what cannot be read", extra={"provider": self.name, "why": safe_line(why, 500)}
        )
        return UpstreamFailure(
            f"The provider '{self.name}' sent an answer that cannot be read.", code="upstream_unreadable"
        )

    def error_in_stream(self, error: Any) -> RouteurError:
        """The failure that a provider reports in the middle of a stream."""
        body = orjson.dumps({"error": error}, default=str)
        status = error.get("status") or error.get("code") if isinstance(error, dict) else None
        return self._failure(status if isinstance(status, int) else 500, body, {}, "")

    # -- one call --

    @asynccontextmanager
    async def _answered(
        self, path: str, body_of: "_BodyOf", model: str, first_byte: float, patience: Patience
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, bytes, "_Clock"]]:
        """A good response with its first bytes, under a clock.

        `body_of` makes the body, anew for each try. The first bytes are due `first_byte` seconds after each try.
        """
        clock = _Clock(self.deadlines.total, patience.first_byte)
        retries = self.deadlines.retries if patience.retries is None else patience.retries
        response: aiohttp.ClientResponse | None = None
        try:
            async with clock:
                response, first = await self._begin(path, body_of, model, clock, first_byte, retries)
                clock.begun()
                yield response, first, clock
        except TimeoutError as error:
            if not clock.expired:
                raise
            raise UpstreamTimeout(
                f"The provider '{self.name}' was silent for too long ({clock.spent():.1f} s in all)."
            ) from error
        except aiohttp.ClientError as error:
            raise self._broken(error) from error
        finally:
            if response is not None:
                if response.content.is_eof():
                    response.release()
                else:
                    response.close()

    async def _begin(
        self, path: str, body_of: "_BodyOf", model: str, clock: "_Clock", first_byte: float, retries: int
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send the body until a first byte of a good answer is here. Nothing is repeated after that byte."""
        attempt = 0
        while True:
            clock.allow(first_byte)
            try:
                body, kind = body_of()
                headers = {**self._headers, **kind}
                response = await self._open().post(
                    self.base_url + path, data=body, headers=headers, allow_redirects=False, proxy=self._proxy
                )
                try:
                    if response.status == HTTPStatus.OK:
                        return response, await self._first_bytes(response)
                    failure = self._failure(response.status, await self._read_some(response), response.headers, model)
                except BaseException:
                    response.close()
                    raise
                response.release()
                again = response.status in _RETRIED
            except (aiohttp.ClientError, ConnectionError) as error:
                failure, again = self._broken(error), not isinstance(error, aiohttp.InvalidURL)
            pause = _pause(attempt, failure.retry_after)
            if not again or attempt >= retries or pause is None:
                raise failure
            attempt += 1
            clock.allow(pause + 1)
            await asyncio.sleep(pause)

    async def _first_bytes(self, response: aiohttp.ClientResponse) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self.unreadable("a compressed answer, though none was asked for")
        first = await response.content.readany()
        if not first and response.content.is_eof():
            raise aiohttp.ClientPayloadError("an empty answer")
        return first

    async def _read_whole(self, response: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise self.unreadable(f"more than {MAX_BODY_BYTES} bytes")
            pieces.append(chunk)
        return b"".join(pieces)

    async def _read_some(self, response: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        while size < MAX_ERROR_BYTES and (chunk := await response.content.readany()):
            size += len(chunk)
            pieces.append(chunk)
        return b"".join(pieces)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._new_session()
        return self._session

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, ttl_dns_cache=60, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.deadlines.connect),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    # -- what went wrong --

    def _failure(self, status: int, body: bytes, headers: Mapping[str, str], model: str) -> RouteurError:
        code, said = provider_words(body)
        logger.log(
            self._level,
            "provider refused",
            extra={"provider": self.name, "status": status, "code": code, "said": safe_line(said, 500)},
        )
        return failure_of(self.name, status, code, said, retry_after_of(headers), model=model, setting=self._setting)

    def _broken(self, error: Exception) -> UpstreamFailure | UpstreamTimeout:
        logger.log(
            self._level,
            "connection to provider failed",
            extra={"provider": self.name, "why": safe_line(f"{type(error).__name__}: {error}", 500)},
        )
        if isinstance(error, TimeoutError):  # aiohttp's own, for connecting
            return UpstreamTimeout(f"The provider '{self.name}' did not accept the connection in time.")
        if isinstance(error, aiohttp.ClientConnectorError):
            return UpstreamFailure(f"The provider '{self.name}' cannot be reached.", code="upstream_unreachable")
        return UpstreamFailure(f"The connection to the provider '{self.name}' broke.", code="upstream_broken")

    def _json(self, body: bytes) -> Any:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise self.unreadable(str(error)) from error


#: Makes a body, and the headers that it needs.
_BodyOf = Callable[[], tuple[bytes | aiohttp.FormData, Mapping[str, str]]]
_JSON = {"content-type": "application/json"}


def _json_data(payload: Mapping[str, Any]) -> tuple[bytes, Mapping[str, str]]:
    return orjson.dumps(payload, default=str), _JSON


def _form_data(form: Form) -> tuple[aiohttp.FormData, Mapping[str, str]]:
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in form.fields:
        data.add_field(name, value)
    # as a file: aiohttp sends it piece by piece, and others have their turn
    file = form.file
    data.add_field("file", io.BytesIO(file.content), filename=file.name, content_type=file.content_type)
    return data, {}


class ProviderSocket:
    """A WebSocket of text frames. One reader; `aclose` it whatever happens."""

    def __init__(self, client: ProviderClient, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.client = client
        self._socket = socket

    @property
    def close_code(self) -> int | None:
        """With which it was closed; None: it is open."""
        return self._socket.close_code

    async def send(self, text: str) -> None:
        """One frame; waits while the provider does not read.

        Raises:
            UpstreamTimeout: for too long.
            UpstreamFailure: the connection broke.
        """
        try:
            async with asyncio.timeout(self.client.deadlines.idle):
                await self._socket.send_str(text)
        except TimeoutError as error:
            raise UpstreamTimeout(f"The provider '{self.client.name}' does not read what is sent.") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise self.client.broken(error) from error

    async def receive(self) -> str | None:
        """The next frame; None: the provider has closed.

        Raises:
            UpstreamFailure: the connection broke, or it was no text.
        """
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            text: str = message.data
            return text
        if message.type is aiohttp.WSMsgType.BINARY:
            raise self.client.unreadable("a binary frame in a Realtime socket")
        if message.type is aiohttp.WSMsgType.ERROR:
            broken = self._socket.exception()
            raise self.client.broken(broken if isinstance(broken, Exception) else ConnectionError("the socket broke"))
        return None

    async def aclose(self) -> None:
        """Close it; the other side has half a second to agree."""
        with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
            async with asyncio.timeout(_SOCKET_CLOSES + 0.2):
                await self._socket.close()


class ByteStream:
    """A response as it comes, one piece for each read: bytes, or `lines` of them.

    Attributes:
        content_type: what the provider says it is, without parameters, in lower case.
    """

    def __init__(self, client: ProviderClient, response: aiohttp.ClientResponse, first: bytes, clock: "_Clock") -> None:
        self.content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._client = client
        self._response = response
        self._clock = clock
        self._chunk = first
        self._read = 0

    def lines(self) -> AsyncIterator[list[bytes]]:
        """The same as whole lines. In place of the bytes, not after some of them."""
        return _Lines(_Reads(self._client, self._response, self._chunk, self._clock))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = self._chunk
        self._chunk = b""
        if not chunk:
            self._clock.allow(self._client.deadlines.idle)
            chunk = await self._response.content.readany()
            self._clock.rest()
        if not chunk:
            raise StopAsyncIteration
        self._read += len(chunk)
        if self._read > MAX_BODY_BYTES:
            raise self._client.unreadable(f"more than {MAX_BODY_BYTES} bytes")
        return chunk


class _Reads:
    """Whole lines of a response, a piece for each read. A class and not a generator: it may be left unfinished."""

    def __init__(self, client: ProviderClient, response: aiohttp.ClientResponse, first: bytes, clock: "_Clock") -> None:
        self._client = client
        self._content = response.content
        self._clock = clock
        self._chunk = first
        self._tail = b""
        self._read = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        clock, idle = self._clock, self._client.deadlines.idle
        while True:
            if not (chunk := self._chunk):
                clock.allow(idle)
                chunk = await self._content.readany()
                clock.rest()
                if not chunk:
                    break
            self._chunk = b""
            self._read += len(chunk)
            if self._read > MAX_BODY_BYTES or len(self._tail) + len(chunk) > MAX_LINE_BYTES:
                raise self._client.unreadable(f"over {MAX_LINE_BYTES} bytes in one line or {MAX_BODY_BYTES} in all")
            whole = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
            if not whole:
                self._tail += chunk
                continue
            lines = self._tail + chunk[:whole]
            self._tail = chunk[whole:]
            return lines
        if self._tail:
            lines, self._tail = self._tail, b""
            return lines
        raise StopAsyncIteration


class _Lines:
    """The same as lists of lines."""

    def __init__(self, reads: AsyncIterator[bytes]) -> None:
        self._reads = reads

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[bytes]:
        return (await anext(self._reads)).splitlines()


class _Clock:
    """A time limit that is moved on as long as something happens, and never past the end of the whole call.

    As `asyncio.timeout`, but to move it costs one look at the clock and no new timer: that is done with every read.
    """

    def __init__(self, total: float, first_byte: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._total = self._began + total
        self._end = self._total if first_byte is None else self._began + min(first_byte, total)
        self._due = self._end
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self.expired = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        if self._task is None:  # pragma: no cover - a coroutine always runs in a task
            raise RuntimeError("not in a task")
        self._cancelling = self._task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        if self.expired and task is not None and task.uncancel() <= self._cancelling and cancelled:
            raise TimeoutError from error

    def allow(self, seconds: float) -> None:
        """From now on, that many seconds."""
        self._due = min(self._loop.time() + seconds, self._end)
        if self._timer is None or self._due < self._timer.when():
            self._arm()

    def begun(self) -> None:
        """The first byte is here."""
        self._end = self._total
        self.rest()

    def rest(self) -> None:
        """Nobody waits for the provider now (the reader is being waited for): only the whole call's end counts."""
        self._due = self._end

    def spent(self) -> float:
        """Seconds since the call began."""
        return self._loop.time() - self._began

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        if self._loop.time() < self._due:  # something has happened since
            self._arm()
        elif self._task is not None:
            self.expired = True
            self._task.cancel()


async def _read_last_bytes(response: aiohttp.ClientResponse) -> None:
    """After the last event only the end of the body is due; with it the connection can be used again."""
    if not response.content.is_eof():
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(_LAST_BYTES):
                while not response.content.at_eof():
                    await response.content.readany()


def _pause(attempt: int, retry_after: float | None) -> float | None:
    """Seconds before the next try; None when the provider asks for more than we wait."""
    if retry_after is not None:
        return retry_after if retry_after <= _LONGEST_WAIT else None
    return float(min(8.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret


def _proxy_for(base_url: str) -> str | None:
    """The proxy of the environment for that address; never for this machine."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost" or host.endswith(".localhost")
    if local or proxy_bypass(host):
        return None
    return getproxies().get(parts.scheme)
