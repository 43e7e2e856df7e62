"""Scripted chat models: real LangChain models whose answers a test writes down beforehand."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr

from domain.usage import Usage
from services.model_stream import current_listener

USAGE = UsageMetadata(input_tokens=7, output_tokens=5, total_tokens=12)


class ScriptedModel(BaseChatModel):
    """Speaks to the run's listener as our providers do. Each call takes the next answer of the script.

    A script's entry is a text, an AIMessage (with tool calls), or an exception to be raised. Texts are told word by
    word; the whole conversation of each call is kept in `heard`.
    """

    script: list[Any]
    model_id: str = "fake/scripted"
    named: str = "fake"
    hold: asyncio.Event | None = None
    _heard: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _spoke: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    @property
    def heard(self) -> list[list[BaseMessage]]:
        """The messages of each call so far."""
        return self._heard

    @property
    def spoke(self) -> asyncio.Event:
        """Set when the first piece of an answer has been told."""
        return self._spoke

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Tools are known; the script decides what is called."""
        return self.bind(tools=[getattr(tool, "name", str(tool)) for tool in tools], **kwargs)

    def _should_stream(self, **kwargs: Any) -> bool:
        return False

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise NotImplementedError("the house is async")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self._heard.append(list(messages))
        entry = self.script[len(self._heard) - 1]
        if isinstance(entry, BaseException):
            raise entry
        message = entry.model_copy() if isinstance(entry, AIMessage) else AIMessage(entry)
        message.id = f"msg_{self.named}_{len(self._heard)}"
        message.usage_metadata = USAGE
        message.response_metadata = {"routeur_model": self.model_id}
        listener = current_listener.get()
        if listener is not None:
            for word in str(message.text).split(" "):
                if listener.full:
                    await listener.drained()
                listener.text(message.id, word + " ")
                self._spoke.set()
                await asyncio.sleep(0)
            if self.hold is not None:
                await self.hold.wait()
            finish = "tool_calls" if message.tool_calls else "stop"
            listener.call_finished(self.model_id, Usage(input_tokens=7, output_tokens=5, total_tokens=12), finish)
        return ChatResult(generations=[ChatGeneration(message=message)])


class ForeignModel(BaseChatModel):
    """A model that a graph brought along: it knows nothing of our listener and streams by LangChain's callbacks."""

    words: list[str]

    @property
    def _llm_type(self) -> str:
        return "foreign"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("".join(self.words), usage_metadata=USAGE))])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for word in self.words:
            chunk = ChatGenerationChunk(message=AIMessageChunk(word))
            if run_manager:
                await run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk
        yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=USAGE))
