"""The response that carries a stream, and the watch on a client that may leave."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.streaming.sse import HEARTBEAT
from services.silence import SilenceBell

T = TypeVar("T")

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold tokens back
}


#: Seconds before anybody looks whether the client is still there: a departure is not forgotten meanwhile.
_UNWATCHED = 0.1

_END = {"type": "http.response.body", "body": b"", "more_body": False}


class ClientLeft(Exception):
    """No failure of anybody's: the client closed the connection; nobody will read the answer."""


class EventStreamResponse(Response):
    """Sends what `chunks` yields as it comes.

    When the client leaves, `chunks` is closed at once, also while it waits: whatever it holds (a run, a provider's
    connection) ends with it. A slow client makes `send` wait, and `chunks` is simply not asked for more.

    Args:
        heartbeat: send a comment after that many seconds of silence, where `chunks` does not do so itself.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        headers: Mapping[str, str] | None = None,
        *,
        heartbeat: float | None = None,
    ) -> None:
        super().__init__(headers={**_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._chunks = chunks
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end or until the client leaves."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await while_connected(receive, self._send_all(send))
        except ClientLeft:
            return
        except asyncio.CancelledError:
            await send(_END)  # cut by the server's stop: the body still has a proper end
            raise

    async def _send_all(self, send: Send) -> None:
        bell = None if self._heartbeat is None else _Heart(send, self._heartbeat)
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    try:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    except asyncio.CancelledError as error:
                        # It may be meant for a limit that `chunks` has set, and that has been reached meanwhile.
                        last = await chunks.athrow(error)
                        await send({"type": "http.response.body", "body": last, "more_body": True})
                    if bell is not None:
                        bell.postpone()
        finally:
            if bell is not None:
                bell.cancel()
        await send(_END)


class _Heart(SilenceBell):
    """Beats while nothing is said."""

    def __init__(self, send: Send, seconds: float) -> None:
        super().__init__(asyncio.get_running_loop(), seconds, self._beat)
        self._send = send
        self._beating: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Stand still."""
        super().cancel()
        if self._beating is not None:
            self._beating.cancel()

    def _beat(self) -> None:
        if self._beating is None or self._beating.done():  # else a client that does not read has one waiting
            self._beating = asyncio.create_task(self._say())

    async def _say(self) -> None:
        await self._send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects.

    Call it only when the request's body has been read: the next message is then the disconnect.

    Raises:
        ClientLeft: the client went away first.
    """
    this = asyncio.current_task()
    if this is None:  # pragma: no cover - a coroutine always runs in a task
        raise RuntimeError("not in a task")
    watch = _Watch(receive, this)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.left and this.uncancel() == 0:
            raise ClientLeft("The client left.") from None
        raise
    finally:
        watch.end()


class _Watch:
    """Waits for the client to leave, and then cancels `task`. Most answers are there before it has to begin."""

    def __init__(self, receive: Receive, task: "asyncio.Task[Any]") -> None:
        self.left = False
        self._receive = receive
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_UNWATCHED, self._begin)

    def end(self) -> None:
        """It does not matter any more whether they leave."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.remove_done_callback(self._leave)
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(_disconnect(self._receive))
        self._watcher.add_done_callback(self._leave)

    def _leave(self, watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled():
            self.left = True
            self._task.cancel()


async def _disconnect(receive: Callable[[], Awaitable[Mapping[str, object]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
