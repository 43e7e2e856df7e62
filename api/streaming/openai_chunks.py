"""An agent's events as chat completion chunks: role first, deltas, one finish, usage when asked for, `[DONE]`."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import orjson

from domain.enums import FinishReason
from domain.events import Envelope, ReasoningDelta, RunFinished, TextDelta, ToolFinished, ToolStarted
from domain.usage import Usage
from services.wire_messages import BETWEEN

#: How an agent's own tool calls are shown: not at all, as thoughts, or as calls (which clients may take for theirs).
ToolView = Literal["hidden", "reasoning", "calls"]

DONE = b"data: [DONE]\n\n"


def chat_usage(usage: Usage) -> dict[str, Any]:
    """Usage in the words of chat completions."""
    body: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens is not None or usage.audio_tokens is not None:
        body["prompt_tokens_details"] = {
            "cached_tokens": usage.cached_tokens or 0,
            "audio_tokens": usage.audio_tokens or 0,
        }
    if usage.reasoning_tokens is not None:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


class ChatChunks:
    """Renders one run of an agent.

    Args:
        run_id: of the run; the answer's id is made of it.
        model: as the answer names it.
        usage: tell what it cost.
        tools: how the agent's tool calls are shown.
    """

    def __init__(self, run_id: str, model: str, *, usage: bool = False, tools: ToolView = "hidden") -> None:
        self._head = {
            "id": f"chatcmpl-{run_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._before = b"data: " + orjson.dumps(self._head)[:-1] + b',"choices":[{"index":0,"delta":'
        self._after = b',"logprobs":null,"finish_reason":null}]}\n\n'
        self._usage = usage
        self._tools = tools
        self._speaking = ""
        self._calls = 0

    def opening(self) -> bytes:
        """The first chunk: who speaks."""
        return self._delta({"role": "assistant", "content": ""})

    def render(self, envelopes: Iterable[Envelope]) -> bytes:
        """What is to be told of these events. The terminal event of a run that failed is the caller's to tell."""
        return b"".join([self._one(envelope.event) for envelope in envelopes])

    def _one(self, event: Any) -> bytes:
        if type(event) is TextDelta:
            if not event.text:
                return b""
            text = event.text
            if event.message_id != self._speaking:
                if self._speaking:
                    text = BETWEEN + text
                self._speaking = event.message_id
            return b"".join((self._before, b'{"content":', orjson.dumps(text), b"}", self._after))
        if type(event) is ReasoningDelta:
            return self._delta({"reasoning_content": event.text})
        if type(event) is ToolStarted:
            return self._tool_started(event)
        if type(event) is ToolFinished and self._tools == "reasoning":
            return self._delta({"reasoning_content": tool_line(event)})
        if type(event) is RunFinished:
            return self._ending(event)
        return b""

    def _tool_started(self, event: ToolStarted) -> bytes:
        if self._tools == "hidden":
            return b""
        if self._tools == "reasoning":
            return self._delta({"reasoning_content": tool_line(event)})
        index, self._calls = self._calls, self._calls + 1
        return self._delta({"tool_calls": [{"index": index, **shown_call(event)}]})

    def _ending(self, event: RunFinished) -> bytes:
        frames = [self._frame([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish_of(event)}])]
        if self._usage and event.usage is not None:
            frames.append(self._frame([], usage=chat_usage(event.usage)))
        return b"".join((*frames, DONE))

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return b"".join((self._before, orjson.dumps(delta), self._after))

    def _frame(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + orjson.dumps({**self._head, "choices": choices, **more}) + b"\n\n"


def finish_of(event: RunFinished) -> str:
    """Why it ended, for somebody who has nothing to do: an agent has called its own tools."""
    return "stop" if event.finish_reason is FinishReason.TOOL_CALLS else event.finish_reason.value


def shown_call(event: ToolStarted) -> dict[str, Any]:
    """A tool call of the agent's in OpenAI's form."""
    arguments = orjson.dumps(event.arguments).decode()
    return {"id": event.call_id, "type": "function", "function": {"name": event.name, "arguments": arguments}}


def tool_line(event: ToolStarted | ToolFinished) -> str:
    """A tool call, or what came of it, in words."""
    if isinstance(event, ToolStarted):
        return f"{event.name}({orjson.dumps(event.arguments).decode()})\n"
    return f"{event.name} {'answered' if event.ok else 'failed'}: {event.output}\n"


def whole_answer(run_id: str, model: str, envelopes: Sequence[Envelope], tools: ToolView) -> dict[str, Any]:
    """A finished run as one chat completion.

    Raises:
        ValueError: it has not finished.
    """
    last = envelopes[-1].event
    if not isinstance(last, RunFinished):
        raise ValueError("the run has not finished")
    message: dict[str, Any] = {"role": "assistant", "content": last.output, "refusal": None}
    started = [one.event for one in envelopes if isinstance(one.event, ToolStarted)]
    thoughts = ""
    for one in envelopes:
        event = one.event
        if isinstance(event, ReasoningDelta):
            thoughts += event.text
        elif tools == "reasoning" and isinstance(event, ToolStarted | ToolFinished):
            thoughts += tool_line(event)
    if thoughts:
        message["reasoning_content"] = thoughts
    if tools == "calls" and started:
        message["tool_calls"] = [shown_call(event) for event in started]
    body: dict[str, Any] = {
        "id": f"chatcmpl-{run_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_of(last), "logprobs": None}],
    }
    if last.usage is not None:
        body["usage"] = chat_usage(last.usage)
    return body


def error_frame(body: dict[str, Any]) -> bytes:
    """A failure in the middle of a stream; OpenAI's SDK raises it. Nothing follows."""
    return b"data: " + orjson.dumps(body) + b"\n\n"
