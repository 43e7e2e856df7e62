"""Embedding: texts in, vectors out, by the model that was named and by no other.

There are no fallbacks here: vectors of two models cannot be compared. A call is no run, but it costs, so it is written
down like every model call: with its owner, its model, its usage and its price.
"""

import asyncio
import logging
from collections.abc import Awaitable
from datetime import UTC, datetime

from core.logging import safe_line
from core.metrics import Metrics
from domain.auth import Principal
from domain.embeddings import Embedded, EmbeddingRequest, Embeddings, Vector
from domain.errors import Forbidden, InvalidRequest, RateLimited, RouteurError, UpstreamFailure
from domain.ports import RecordStore
from domain.runs import ModelCall, counted_columns
from domain.usage import Usage, to_pico
from services.embedding_vectors import Unfit, converted, in_order, size_of
from services.llm_service import LLMService, ResolvedModel

logger = logging.getLogger(__name__)

_BUSY_RETRY = 1.0  # seconds
_MODEL_CHARS = 255
#: Failures of calls that their provider had taken: it may have counted them, and nobody will ever say how much.
_MAY_HAVE_COST = frozenset({"timeout", "upstream_unreadable", "upstream_broken"})


class EmbeddingService:
    """Embeds for callers.

    Args:
        at_once: calls in one process; more are refused.
    """

    def __init__(self, llm: LLMService, store: RecordStore, metrics: Metrics, at_once: int) -> None:
        self._llm = llm
        self._store = store
        self._metrics = metrics
        self._at_once = at_once
        self._open = 0

    async def embed(self, request: EmbeddingRequest, caller: Principal) -> Embeddings:
        """A vector for each input; the call is in the record when this returns.

        Raises:
            ModelNotFound: no configured provider has that model.
            Forbidden: the caller's key does not allow it.
            InvalidRequest: the model does not embed, or not this.
            RateLimited: too many calls at once, here or at the provider.
            RouteurError: of the upstream kinds; Unavailable when the call cannot be written down.
        """
        model = await self._llm.resolve(request.model, kind="embedding")
        if caller.allowed_models and model.id not in caller.allowed_models:
            raise Forbidden(f"This key may not use the model '{model.id}'.", code="model_not_allowed", param="model")
        if self._open >= self._at_once:
            raise RateLimited("Too many calls at once; try again in a moment.", retry_after=_BUSY_RETRY)
        self._open += 1
        try:
            return await self._embed(model, request, caller)
        finally:
            self._open -= 1

    async def _embed(self, model: ResolvedModel, request: EmbeddingRequest, caller: Principal) -> Embeddings:
        try:
            answer = await self._llm.embed(model, request)
        except asyncio.CancelledError:
            self._note(model, None, caller)  # the caller left; the provider may count it all the same
            raise
        except RouteurError as error:
            if error.code in _MAY_HAVE_COST:
                await asyncio.shield(self._note(model, None, caller))
            raise
        self._metrics.model_called(model.id, answer.usage)
        # It has been paid for, whatever it is worth: written down while it is looked at.
        writing = self._note(model, answer.usage, caller)
        try:
            vectors = await self._vectors(model, request, answer)
        finally:
            await asyncio.shield(writing)
        return Embeddings(model.id, vectors, answer.usage)

    async def _vectors(self, model: ResolvedModel, request: EmbeddingRequest, answer: Embedded) -> list[Vector]:
        """The provider's vectors as the caller wants them."""
        try:
            found = in_order(answer.data, len(request.inputs))
            size = size_of(found)
            if request.dimensions not in (None, size):
                raise InvalidRequest(
                    f"The model '{model.id}' gives {size} dimensions, not {request.dimensions}: leave them out.",
                    code="dimensions_not_supported",
                    param="dimensions",
                )
            return await converted(found, size, base64=request.base64)
        except Unfit as error:
            said = {"provider": model.provider, "why": safe_line(str(error), 500)}
            logger.warning("provider sent what cannot be read", extra=said)
            message = f"The provider '{model.provider}' sent an answer that cannot be read."
            raise UpstreamFailure(message, code="upstream_unreadable") from error

    def _note(self, model: ResolvedModel, usage: Usage | None, caller: Principal) -> Awaitable[None]:
        price = None if usage is None else self._llm.price(model.id)
        cost = None if usage is None or price is None else to_pico(price.cost(usage))
        call = ModelCall(
            owner_id=caller.user_id,
            run_id=None,
            session_id=None,
            agent="",
            model=model.id[:_MODEL_CHARS],
            created_at=datetime.now(UTC),
            **counted_columns(usage, cost),
        )
        return self._store.note_call(call)
