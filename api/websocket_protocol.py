"""uvicorn's WebSocket protocol with what it lacks: answers end before a restart does, and no socket stays half-open.

Measured on uvicorn 0.54: a stop closes sockets in the middle of an answer, a close frame waits behind a reader that
does not read, a connection that was closed stays until such a reader takes the rest, and the log tells whole addresses.
"""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

#: How a handler is told that the server stops: a disconnect with this code. It ends the session itself.
STOPPING = 1012
_quiet = logging.getLogger(__name__)
_quiet.setLevel(logging.WARNING)  # its info lines hold the query


class GuardedWebSocketProtocol(WebSocketsSansIOProtocol):
    """On the sans-IO one: an idle session takes 38 kB with it, 47 kB with the older (benchmarks/realtime.py)."""

    abort_after = 5.0  # seconds that a peer has to take what it was told at the end

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.logger = _quiet
        self.conn.logger, self.conn.debug = _quiet, False  # at DEBUG it logs whole heads, credentials and all
        self._abort_timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is left."""
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: the handler closes when its answer is told; uvicorn's grace ends what takes longer."""
        if self.handshake_complete and not self.close_sent and not self.disconnected:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": STOPPING})
        else:
            super().shutdown()

    def keepalive_timeout(self) -> None:
        """No answer to a ping."""
        super().keepalive_timeout()
        self._abort_soon()

    def handle_parser_exception(self) -> None:
        """A frame that is none, or too large."""
        super().handle_parser_exception()
        self._abort_soon()

    def send_receive_event_to_app(self) -> None:
        """A whole message; text that is no UTF-8 closes with 1007, and is not worth a trace in the log."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.fail(1007, "text that is not UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """A close frame does not wait for a reader that does not read."""
        if message["type"] == "websocket.close":
            self.writable.set()
            await super().send(message)
            self._abort_soon()
        else:
            await super().send(message)
        if message["type"] == "websocket.accept":
            self._forget_handshake()

    async def run_asgi(self) -> None:
        """Run the handler; whatever it has left open is closed."""
        await super().run_asgi()
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(1011)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.transport.close()
        if not self.disconnected:
            self._abort_soon()

    def _forget_handshake(self) -> None:
        """An open socket has no use for its request: a tenth of what an idle one takes."""
        self.request = self.response = None  # type: ignore[assignment]

    def _abort_soon(self) -> None:
        if self._abort_timer is None and not self.disconnected:
            self._abort_timer = self.loop.call_later(self.abort_after, self.transport.abort)
