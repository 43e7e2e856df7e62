"""WebRTC calls of one process: answered, counted with the sockets, hung up. A call is a realtime session
(`realtime_service.py`) whose transport is `realtime/rtc.py`."""

import asyncio
import importlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from uuid_utils import uuid4

from domain.auth import Principal
from domain.errors import InternalError, InvalidRequest, NotFound, RouteurError, Unavailable
from services.realtime.conversation import Conversation, Ending
from services.realtime_service import SHUTDOWN, RealtimeService, Ticket, Wanted

logger = logging.getLogger(__name__)

_RTC = "services.realtime.rtc"
_HUNG_UP = Ending(1000, "The call was hung up.")
_LAST_ANSWER = 5.0  # seconds that an answer in progress may go on when the server stops


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was answered."""

    call_id: str
    session_id: str
    sdp: str


@dataclass(slots=True, eq=False)
class _Open:
    call_id: str
    owner_id: str
    conversation: Conversation | None = None
    hang_up: Callable[[Ending], None] | None = None


class RealtimeCalls:
    """Answers offers with `open`; closes everything with `aclose`."""

    def __init__(self, realtime: RealtimeService) -> None:
        self._realtime = realtime
        self._open: dict[str, _Open] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """Calls that go on, or are being answered."""
        return len(self._tasks)

    async def open(
        self, offer: str, wanted: Wanted, ticket: Ticket, describe: Callable[[RouteurError], dict[str, Any]]
    ) -> Call:
        """Answer an offer; the call goes on by itself then.

        Raises:
            Unavailable: the extra `realtime` is not installed, or the server stops.
            InvalidRequest: the offer cannot be used.
            RouteurError: as `RealtimeService.session`.
        """
        if ticket.transcribes:
            raise InvalidRequest("A call talks; open a WebSocket to transcribe.", code="invalid_value", param="session")
        rtc = _rtc()
        checked = rtc.checked_offer(offer)
        answered: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        call = _Open(f"rtc_{uuid4().hex}", ticket.caller.user_id)
        task = asyncio.create_task(
            self._serve(rtc, call, checked, wanted, ticket, describe, answered), name=f"call {call.call_id}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(answered)
        except asyncio.CancelledError:
            task.cancel()  # whoever offered has left before the answer
            raise

    def hang_up(self, call_id: str, caller: Principal) -> None:
        """End a call of the caller's.

        Raises:
            NotFound: there is none of that id in this process.
        """
        call = self._open.get(call_id)
        if call is None or call.hang_up is None or call.owner_id != caller.user_id:
            raise NotFound("There is no such call.", code="call_not_found", param="call_id")
        del self._open[call_id]
        call.hang_up(_HUNG_UP)

    async def aclose(self) -> None:
        """End all calls: what is being said may be finished, within reason."""
        for call in list(self._open.values()):
            if call.conversation is not None:
                call.conversation.end_after_answer(SHUTDOWN)
                if call.hang_up is not None and call.conversation.ending is not None:
                    call.hang_up(SHUTDOWN)  # nor does it wait for a peer that has not come yet
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_ANSWER)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _serve(
        self,
        rtc: ModuleType,
        call: _Open,
        offer: str,
        wanted: Wanted,
        ticket: Ticket,
        describe: Callable[[RouteurError], dict[str, Any]],
        answered: asyncio.Future[Call],
    ) -> None:
        self._open[call.call_id] = call
        try:
            async with self._realtime.session(wanted, ticket, describe) as conversation:
                peer = rtc.Peer(conversation, self._realtime.settings)
                try:
                    sdp = await peer.answer(offer)
                    call.conversation, call.hang_up = conversation, peer.end
                    answered.set_result(Call(call.call_id, conversation.session_id, sdp))
                    await peer.serve()
                finally:
                    await asyncio.shield(peer.close())
        except RouteurError as error:
            _tell(answered, error)
        except Exception as error:
            logger.exception("a call failed")
            failure = InternalError()
            failure.__cause__ = error
            _tell(answered, failure)
        finally:
            self._open.pop(call.call_id, None)
            _tell(answered, Unavailable("The server is stopping.", retry_after=1))


def _tell(answered: asyncio.Future[Call], error: RouteurError) -> None:
    if not answered.done():
        answered.set_exception(error)
        with suppress(RouteurError):
            answered.exception()  # it may be that nobody waits any more


def _rtc() -> ModuleType:
    try:
        return importlib.import_module(_RTC)
    except ImportError as error:
        raise Unavailable(
            "WebRTC is not installed here. Install it with: uv sync --extra realtime", code="webrtc_not_installed"
        ) from error
