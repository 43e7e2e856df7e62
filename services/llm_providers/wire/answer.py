"""An answer while it arrives: pieces in, one AIMessage out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from langchain_core.messages import AIMessage, InvalidToolCall, ToolCall
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from uuid_utils import uuid7

from domain.enums import FinishReason
from domain.usage import MOST_TOKENS, Usage

_CHARS_PER_TOKEN, _TOKENS_PER_MESSAGE = 4, 4  # OpenAI's own rule of thumb
_FINISH = {reason.value: reason.value for reason in FinishReason} | {
    "function_call": FinishReason.TOOL_CALLS.value,
    "model_length": FinishReason.LENGTH.value,  # Mistral
    "max_tokens": FinishReason.LENGTH.value,
    "eos": FinishReason.STOP.value,
    "end_turn": FinishReason.STOP.value,
}


@dataclass(slots=True)
class Fragment:
    """A part of a tool call, as it came: `arguments` is text to be joined."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(slots=True)
class Delta:
    """What one event of a provider's stream adds."""

    text: str = ""
    reasoning: str = ""
    fragments: tuple[Fragment, ...] = ()


@dataclass(slots=True)
class Answer:
    """Everything that has arrived of one model call."""

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    calls: dict[int, Fragment] = field(default_factory=dict)
    usage: Usage | None = None
    finish: str | None = None
    served: str | None = None
    done: bool = False

    @property
    def begun(self) -> bool:
        """True once something of the answer has been seen: from then on nobody else may answer in its place."""
        return bool(self.texts or self.reasonings or self.calls or self.finish)

    @property
    def text(self) -> str:
        """The words so far."""
        return "".join(self.texts)

    @property
    def finish_reason(self) -> str | None:
        """One of the FinishReason words; an unknown one counts as a stop. None: cut."""
        if self.finish is None:
            return None
        return (
            FinishReason.TOOL_CALLS.value if self.calls and self.finish == "stop" else _FINISH.get(self.finish, "stop")
        )

    def add(self, delta: Delta) -> None:
        """Keep it."""
        if delta.text:
            self.texts.append(delta.text)
        if delta.reasoning:
            self.reasonings.append(delta.reasoning)
        for part in delta.fragments:
            call = self.calls.get(part.index)
            if call is None:
                self.calls[part.index] = Fragment(part.index, part.id, part.name, part.arguments)
            else:
                call.id = call.id or part.id
                call.name = call.name or part.name
                call.arguments += part.arguments

    def known_call(self, index: int) -> Fragment:
        """That call so far. It has an id: where its provider gives none, one of ours."""
        call = self.calls[index]
        call.id = call.id or f"call_{uuid7().hex}"
        return call

    def message(self, message_id: str, routeur_id: str) -> AIMessage:
        """The whole of it as LangChain's message."""
        return AIMessage(**self.fields(message_id, routeur_id))

    def fields(self, message_id: str, routeur_id: str) -> dict[str, Any]:
        """The fields of LangChain's message."""
        calls, invalid = self._tool_calls() if self.calls else ([], [])
        more = {"reasoning_content": "".join(self.reasonings)} if self.reasonings else {}
        return {
            "content": self.text,
            "additional_kwargs": more,
            "response_metadata": {
                "finish_reason": self.finish_reason,
                "model_name": self.served or routeur_id.partition("/")[2],
                "routeur_model": routeur_id,
            },
            "type": "ai",
            "name": None,
            "id": message_id,
            "tool_calls": calls,
            "invalid_tool_calls": invalid,
            "usage_metadata": usage_metadata(self.usage),
        }

    def _tool_calls(self) -> tuple[list[ToolCall], list[InvalidToolCall]]:
        calls: list[ToolCall] = []
        invalid: list[InvalidToolCall] = []
        for _, call in sorted(self.calls.items()):
            call_id, name = call.id or f"call_{uuid7().hex}", call.name or ""
            try:
                arguments = orjson.loads(call.arguments or "{}")
            except orjson.JSONDecodeError:
                arguments = None
            if isinstance(arguments, dict) and name:
                calls.append(ToolCall(name=name, args=arguments, id=call_id, type="tool_call"))
            else:
                invalid.append(
                    InvalidToolCall(
                        name=name, args=call.arguments, id=call_id, error="not a JSON object", type="invalid_tool_call"
                    )
                )
        return calls, invalid


def estimated_usage(texts: Iterable[str], answer: Answer) -> Usage:
    """What a call that was cut has spent, as near as can be told when its provider had not said yet.

    Four characters are about one token, and most providers send one token in a piece: the larger count is taken.

    Args:
        texts: of the messages that were sent.
    """
    asked = sum(len(text) // _CHARS_PER_TOKEN + _TOKENS_PER_MESSAGE for text in texts)
    fragments = [call.arguments for call in answer.calls.values()]
    characters = sum(map(len, (*answer.texts, *answer.reasonings, *fragments)))
    written = max(len(answer.texts) + len(answer.reasonings), -(-characters // _CHARS_PER_TOKEN))
    return Usage(input_tokens=asked, output_tokens=written, total_tokens=asked + written, estimated=True)


def usage_metadata(usage: Usage | None) -> UsageMetadata | None:
    """Our usage in LangChain's words."""
    if usage is None:
        return None
    inputs = {"cache_read": usage.cached_tokens, "audio": usage.audio_tokens}
    outputs = {"reasoning": usage.reasoning_tokens}
    metadata = UsageMetadata(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, total_tokens=usage.total_tokens
    )
    if told := {name: count for name, count in inputs.items() if count is not None}:
        metadata["input_token_details"] = InputTokenDetails(**told)  # type: ignore[typeddict-item]
    if told := {name: count for name, count in outputs.items() if count is not None}:
        metadata["output_token_details"] = OutputTokenDetails(**told)  # type: ignore[typeddict-item]
    return metadata


def counted(value: Any) -> int | None:
    """A count as a provider wrote it; None when it is no count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None
