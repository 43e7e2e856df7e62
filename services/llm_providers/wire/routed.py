"""`RoutedChat`: a LangChain chat model that tells its run every token directly."""

import asyncio
import inspect
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

import orjson
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr
from uuid_utils import uuid7

from domain.errors import RouteurError
from services.llm_providers.wire.answer import Answer, Delta, estimated_usage, usage_metadata
from services.llm_providers.wire.bound import in_openais_words
from services.model_router import Route
from services.model_stream import ModelListener, current_listener

_NO_STREAM = "nostream"  # langgraph.constants.TAG_NOSTREAM


class RoutedChat(BaseChatModel):
    """What all our chat models do alike: who answers in whose place, the run's ear, what an answer cost.

    Attributes:
        routeur_id: `provider/name`.
        wanted_format: how the caller wants the answer (OpenAI's `response_format`); a graph's own choice wins.
        route: for each call, who is asked, in what order; None: this model alone.
        peer: the chat model of another id, with the same parameters. Raises RouteurError: it cannot take them.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    routeur_id: str
    wanted_format: dict[str, Any] | None = None
    route: Callable[[], Route] | None = Field(None, exclude=True, repr=False)
    peer: Callable[[str], "RoutedChat"] | None = Field(None, exclude=True, repr=False)

    _loop: asyncio.AbstractEventLoop | None = PrivateAttr(None)

    def model_post_init(self, context: Any, /) -> None:
        """Remember the loop that it was made on: plain `def` nodes call it from threads."""
        super().model_post_init(context)
        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()

    # -- what a kind of model does --

    @abstractmethod
    def _deltas(
        self,
        answer: Answer,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        route: Route | None = None,
    ) -> AsyncGenerator[list[Delta]]:
        """The pieces of a streamed answer, several at a time, each noted in `answer` before it is yielded.

        `route`, where there is one, says how long the first byte may take and whether to try twice.
        """

    @abstractmethod
    async def _whole(
        self,
        answer: Answer,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        route: Route | None = None,
    ) -> Delta:
        """An unstreamed answer, noted in `answer`; `route` as for a stream."""

    def _adopted(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What was bound, in this vendor's words; it comes in OpenAI's."""
        return kwargs

    # -- what LangChain calls --

    def _should_stream(self, **kwargs: Any) -> bool:
        """Never through callbacks while a run listens to us directly."""
        return current_listener.get() is None and super()._should_stream(**kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        kwargs = self._prepared(kwargs)
        listener = current_listener.get()
        hushed = run_manager is not None and _NO_STREAM in (run_manager.tags or ())
        message_id = new_message_id()
        route = self.route() if self.route is not None else None
        model = self._asked(route)
        while True:
            answer = Answer()
            theirs = model._words(kwargs, self)
            try:
                await model._answer(answer, messages, stop, listener, None if hushed else message_id, theirs, route)
                break
            except RouteurError as error:
                if route is None or not route.failed(error, begun=answer.begun):
                    raise
                model = self._asked(route, error)
        if route is not None:
            route.succeeded()
        message = answer.message(message_id, model.routeur_id)
        if isinstance(kwargs.get("response_format"), type):  # with_structured_output reads what was parsed
            message.additional_kwargs["parsed"] = _parsed(answer.text)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        kwargs = self._prepared(kwargs)
        message_id = new_message_id()
        route = self.route() if self.route is not None else None
        model = self._asked(route)
        while True:
            answer = Answer()
            theirs = model._words(kwargs, self)
            try:
                async with aclosing(model._deltas(answer, messages, stop, theirs, route)) as batches:
                    async for deltas in batches:
                        for delta in deltas:
                            chunk = ChatGenerationChunk(message=_chunk(delta, message_id))
                            if run_manager:
                                await run_manager.on_llm_new_token(delta.text, chunk=chunk)
                            yield chunk
                break
            except RouteurError as error:
                if route is None or not route.failed(error, begun=answer.begun):
                    raise
                model = self._asked(route, error)
        if route is not None:
            route.succeeded()
        last = AIMessageChunk(
            content="",
            id=message_id,
            usage_metadata=usage_metadata(answer.usage),
            response_metadata={"finish_reason": answer.finish_reason, "routeur_model": model.routeur_id},
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """For graphs with plain `def` nodes: LangGraph runs those in a thread, the call itself happens on our loop."""
        loop = self._loop
        if loop is None or not loop.is_running():
            raise RuntimeError("this model is async: call ainvoke(), or invoke() from a node that LangGraph runs")
        try:
            on_loop = asyncio.get_running_loop() is loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            raise RuntimeError("invoke() would block the event loop; await ainvoke() instead")
        return asyncio.run_coroutine_threadsafe(self._agenerate(messages, stop, None, **kwargs), loop).result()

    def _prepared(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in kwargs.items() if name != "stream"}
        if self.wanted_format is not None:
            kept.setdefault("response_format", self.wanted_format)
        return kept

    # -- who is asked --

    def _asked(self, route: Route | None, earlier: RouteurError | None = None) -> "RoutedChat":
        """The one that the route names now; those that cannot take the parameters are passed over.

        Raises:
            RouteurError: nobody is left; `earlier`, where somebody was asked before.
        """
        while route is not None and self.peer is not None and route.model != self.routeur_id:
            try:
                return self.peer(route.model)
            except RouteurError as refusal:
                if not route.skipped():
                    raise earlier or refusal from None
        return self

    def _words(self, kwargs: dict[str, Any], bound_to: "RoutedChat") -> dict[str, Any]:
        return kwargs if type(self) is type(bound_to) else self._adopted(in_openais_words(kwargs))

    # -- one call --

    async def _answer(
        self,
        answer: Answer,
        messages: list[BaseMessage],
        stop: list[str] | None,
        listener: ModelListener | None,
        speak_as: str | None,
        kwargs: dict[str, Any],
        route: Route | None = None,
    ) -> None:
        """Fill `answer`; tell `listener` as it comes. However it ends, the listener hears what it cost."""
        refused = False
        try:
            if listener is not None and listener.streams:
                async with aclosing(self._deltas(answer, messages, stop, kwargs, route)) as batches:
                    async for deltas in batches:
                        if speak_as is not None:
                            for delta in deltas:
                                if delta.text:
                                    listener.text(speak_as, delta.text)
                                if delta.reasoning:
                                    listener.reasoning(speak_as, delta.reasoning)
                        if listener.full:
                            await listener.drained()
                return
            whole = await self._whole(answer, messages, stop, kwargs, route)
            if listener is not None and speak_as is not None:
                if whole.reasoning:
                    listener.reasoning(speak_as, whole.reasoning)
                if whole.text:
                    listener.text(speak_as, whole.text)
        except RouteurError:
            refused = not answer.begun  # nothing was generated, as far as anybody can know: nothing to count
            raise
        finally:
            if listener is not None and not refused:
                usage = answer.usage
                if usage is None and answer.finish is None:  # cut: budgets must not be escaped by leaving early
                    usage = estimated_usage((str(message.text) for message in messages), answer)
                listener.call_finished(self.routeur_id, usage, answer.finish_reason)


# LangChain asks for this signature at every call; worked out anew each time it is a tenth of the whole request.
RoutedChat._agenerate.__signature__ = inspect.signature(RoutedChat._agenerate)  # type: ignore[attr-defined]


def new_message_id() -> str:
    """An id for the message that a call will give."""
    return f"msg_{uuid7().hex}"


def _chunk(delta: Delta, message_id: str) -> AIMessageChunk:
    chunk = AIMessageChunk(
        content=delta.text,
        id=message_id,
        tool_call_chunks=[
            tool_call_chunk(name=part.name, args=part.arguments, id=part.id, index=part.index)
            for part in delta.fragments
        ],
    )
    if delta.reasoning:
        chunk.additional_kwargs["reasoning_content"] = delta.reasoning
    return chunk


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
