"""Speech: a text in, sound out as it is made, by the model that was named and by no other.

A call is no run, but it costs, so it is written down like every model call. Providers that charge by the character
report no usage: then it is unmeasured, and not zero.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from core.metrics import Metrics
from domain.auth import Principal
from domain.errors import Forbidden, RateLimited, RouteurError, UpstreamFailure
from domain.ports import RecordStore
from domain.runs import ModelCall, counted_columns
from domain.speech import SpeechRequest, Spoken
from domain.usage import Usage, to_pico
from services.llm_service import LLMService, ResolvedModel

logger = logging.getLogger(__name__)

_BUSY_RETRY = 1.0  # seconds
_MODEL_CHARS = 255
#: Failures of calls that their provider had taken: it may have counted them, and nobody will ever say how much.
_MAY_HAVE_COST = frozenset({"timeout", "upstream_unreadable", "upstream_broken", "upstream_cut"})


class SpeechStream:
    """Speech whose first sound is here. Iterate `chunks`, once, in the task that began it.

    Attributes:
        model: `provider/name` of what speaks.
        content_type: of all bytes together.
    """

    def __init__(
        self, service: "SpeechService", model: ResolvedModel, request: SpeechRequest, owner: Principal
    ) -> None:
        self.model = model.id
        self.content_type = request.form.media_type
        self._service = service
        self._resolved = model
        self._request = request
        self._owner = owner
        self._stack = AsyncExitStack()
        self._spoken: Spoken | None = None
        self._first = b""

    @property
    def usage(self) -> Usage | None:
        """What the provider counted; known, if ever, when `chunks` are at their end."""
        return None if self._spoken is None else self._spoken.usage

    async def begin(self) -> None:
        """Wait for the first sound.

        Raises:
            RouteurError: of the upstream kinds, InvalidRequest or ModelNotFound.
        """
        taken = False
        try:
            speech = await self._service.llm.speech(self._resolved, self._request)
            taken = True
            async with AsyncExitStack() as stack:
                self._spoken = await stack.enter_async_context(speech)
                self.content_type = self._spoken.content_type or self.content_type
                self._first = await anext(_sounding(self._spoken.chunks), b"")
                if not self._first:
                    raise UpstreamFailure(
                        f"The provider '{self._resolved.provider}' said nothing.", code="upstream_cut"
                    )
                self._stack = stack.pop_all()
        except RouteurError as error:
            await self._over(count=error.code in _MAY_HAVE_COST)
            raise
        except BaseException:
            await self._over(count=taken)  # the caller left; the provider may count it all the same
            raise

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The sound as it comes. The call is in the record when this is at its end, or closed.

        Raises:
            RouteurError: it broke off.
        """
        try:
            async with self._stack:  # it makes the provider's failures ours, and ends its work
                yield self._first
                if self._spoken is not None:
                    async for chunk in _sounding(self._spoken.chunks):
                        yield chunk
        finally:
            await self._over(count=True)

    async def _over(self, *, count: bool) -> None:
        self._service.left()
        if count:
            await asyncio.shield(self._service.note(self._resolved, self.usage, self._owner))


async def _sounding(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        if chunk:
            yield chunk


class SpeechService:
    """Speaks for callers.

    Args:
        at_once: calls in one process; more are refused.
    """

    def __init__(self, llm: LLMService, store: RecordStore, metrics: Metrics, at_once: int) -> None:
        self.llm = llm
        self._store = store
        self._metrics = metrics
        self._at_once = at_once
        self._open = 0

    async def speak(self, request: SpeechRequest, caller: Principal) -> SpeechStream:
        """The speech, begun. The call is in the record when its stream is at its end.

        Raises:
            ModelNotFound: no configured provider has that model.
            Forbidden: the caller's key does not allow it.
            InvalidRequest: the model does not speak, or not so; `param` says what.
            RateLimited: too many calls at once, here or at the provider.
            RouteurError: of the upstream kinds.
        """
        model = await self.llm.resolve(request.model, kind="speech")
        if caller.allowed_models and model.id not in caller.allowed_models:
            raise Forbidden(f"This key may not use the model '{model.id}'.", code="model_not_allowed", param="model")
        if self._open >= self._at_once:
            raise RateLimited("Too many calls at once; try again in a moment.", retry_after=_BUSY_RETRY)
        self._open += 1
        stream = SpeechStream(self, model, request, caller)
        await stream.begin()
        return stream

    def left(self) -> None:
        """A stream is closed; for `SpeechStream`."""
        self._open -= 1

    async def note(self, model: ResolvedModel, usage: Usage | None, caller: Principal) -> None:
        """Write a call down; for `SpeechStream`. The sound is out already: a record that fails goes to the log."""
        self._metrics.model_called(model.id, usage)
        price = None if usage is None else self.llm.price(model.id)
        call = ModelCall(
            owner_id=caller.user_id,
            run_id=None,
            session_id=None,
            agent="",
            model=model.id[:_MODEL_CHARS],
            created_at=datetime.now(UTC),
            **counted_columns(usage, None if usage is None or price is None else to_pico(price.cost(usage))),
        )
        try:
            await self._store.note_call(call)
        except RouteurError as error:
            logger.error("a call could not be written down", extra={"model": model.id, "code": error.code})
