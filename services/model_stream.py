"""The short way from a provider's token to a run's events.

LangChain's callbacks cost more per token than the parsing, the graph and the SSE write together. Our chat models
therefore speak to the listener of the current run directly (a ContextVar, which LangGraph's tasks inherit), and
return one whole AIMessage to LangChain. A chat model that is not ours is heard through LangGraph's own `messages`
stream instead: `services/agent_stream.py` listens to both. See docs/adr/0005.
"""

from contextvars import ContextVar
from typing import Protocol

from domain.usage import Usage


class ModelListener(Protocol):
    """What one run hears of its model calls. Methods are plain and quick: they are called once for each token."""

    @property
    def streams(self) -> bool:
        """True when somebody reads along: ask the provider for a stream. False: one whole answer is cheaper."""
        ...

    def text(self, message_id: str, text: str) -> None:
        """A piece of the answer; `message_id` is the id that the AIMessage will have."""
        ...

    def reasoning(self, message_id: str, text: str) -> None:
        """A piece of what the model thinks aloud."""
        ...

    @property
    def full(self) -> bool:
        """True when the reader is behind: `await drained()` before reading more from the provider."""
        ...

    async def drained(self) -> None:
        """Wait until the reader has caught up. Asked once for each read from the provider, not for each token."""
        ...

    def call_finished(self, model: str, usage: Usage | None, finish_reason: str | None) -> None:
        """One model call is over, well or badly. `model` is `provider/name` of what served it.

        `usage` None: the provider did not say, though it came to its end. `finish_reason` None: it was cut.
        """
        ...


current_listener: ContextVar[ModelListener | None] = ContextVar("current_listener", default=None)
