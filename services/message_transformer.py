"""Raw messages of several libraries as lines that anybody can read, and as usage that anybody can add up.

Reads plain JSON, so that what was stored with one release of a library is understood with the next. One raw message may
become several lines (a request of pydantic-ai holds system and user parts; an answer its text and its tool calls);
each is linked back by the index of its raw message. Nothing that is stored makes it raise: what it does not understand
becomes a line that says so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from domain.enums import Role
from domain.runs import SimplePart
from domain.sessions import MessageFormat, RawMessage, SimpleMessage
from domain.text import clean_text
from domain.usage import MOST_TOKENS, Usage

_UNKNOWN = "[message of an unknown shape]"
_LANGCHAIN_ROLES = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}
_THOUGHTS = frozenset({"thinking", "reasoning", "reasoning_content", "redacted_thinking", "tool_use", "tool_call"})
_MEDIA = {
    "image_url": "[image]",
    "image": "[image]",
    "image-url": "[image]",
    "input_audio": "[audio]",
    "audio": "[audio]",
    "audio-url": "[audio]",
    "video": "[video]",
    "video-url": "[video]",
    "file": "[file]",
    "document-url": "[file]",
    "uploaded-file": "[file]",
    "cache-point": "",
    "cache_point": "",
}

Data = dict[str, Any]


class MessageTransformer:
    """Pure functions of stored messages."""

    def extract_simple_message(self, raw: RawMessage) -> SimpleMessage | None:
        """The first line of one raw message; None when it has nothing to read."""
        lines = self.transform_messages([raw])
        return lines[0] if lines else None

    def transform_messages(self, raws: Sequence[RawMessage]) -> list[SimpleMessage]:
        """Every line of every message, in order, each linked back to its raw message."""
        return [
            SimpleMessage(
                session_id=raw.session_id,
                message_index=raw.message_index,
                part=number,
                run_id=raw.run_id,
                role=Role(part.role),
                kind=part.kind,
                content=part.content,
                name=part.name,
                model=part.model,
                partial=part.partial,
                timestamp=raw.timestamp,
            )
            for raw in raws
            for number, part in enumerate(self.simple_parts(raw.format, raw.message_data))
        ]

    def simple_parts(self, format: MessageFormat, data: Data) -> list[SimplePart]:
        """Every line of one message."""
        try:
            return _READERS[format](data)
        except (AttributeError, KeyError, TypeError, ValueError):
            return [SimplePart(_role_of(data), _UNKNOWN)]

    def extract_model_info(self, format: MessageFormat, data: Data) -> str | None:
        """Which model wrote it, where the message tells."""
        if format == "langchain":
            told = _dict(_dict(data.get("data")).get("response_metadata"))
            name = told.get("routeur_model") or told.get("model_name") or told.get("model")
            return _name(name) if isinstance(name, str) else None
        name = data.get("model_name")
        if format != "pydantic-ai" or not isinstance(name, str):
            return None
        provider = data.get("provider_name")
        return _name(f"{provider}/{name}" if isinstance(provider, str) and provider else name)

    def usage_of(self, format: MessageFormat, data: Data) -> Usage | None:
        """What the provider reported with one answer; None: nothing, or no answer."""
        if format == "langchain":
            return _langchain_usage(_dict(data.get("data")).get("usage_metadata"))
        if format == "pydantic-ai" and data.get("kind") == "response":
            return _pydantic_ai_usage(data.get("usage"))
        return None

    def aggregate_token_usage(self, raws: Sequence[RawMessage], since_index: int = 0) -> Usage | None:
        """The sum over the answers from `since_index` on, each message once; None when nobody reported anything."""
        total: Usage | None = None
        seen: set[int] = set()
        for raw in raws:
            if raw.message_index < since_index or raw.message_index in seen:
                continue
            seen.add(raw.message_index)
            usage = self.usage_of(raw.format, raw.message_data)
            if usage is not None:
                total = usage if total is None else total + usage
        return total

    def model_calls(self, format: MessageFormat, datas: Sequence[Data]) -> list[tuple[str, Usage | None]]:
        """Model and usage of each answer among new messages; usage None: unmeasured."""
        return [
            (self.extract_model_info(format, data) or "unknown", self.usage_of(format, data))
            for data in datas
            if _is_answer(format, data)
        ]

    def run_messages(self, result: Any) -> list[Data]:
        """What a run of pydantic-ai brought: its new messages, never the history that it was given.

        Raises:
            TypeError: `result` is no such result.
        """
        dump: Callable[[], bytes] | None = getattr(result, "new_messages_json", None)
        if dump is None:
            raise TypeError(f"{type(result).__name__} has no new_messages_json()")
        messages: list[Data] = orjson.loads(dump())
        return messages


# -- LangChain --


def _langchain(data: Data) -> list[SimplePart]:
    message = data["data"]
    kind = str(data["type"]).removesuffix("MessageChunk").lower()
    role = _LANGCHAIN_ROLES.get(kind)
    if role is None:
        role = str(message.get("role", ""))
        role = {"developer": "system"}.get(role, role)
        role = role if role in _ROLES else "system"
    text = _content(message.get("content", ""))
    told = message.get("response_metadata") or {}
    name = message.get("name")
    if role == "tool":
        return [SimplePart("tool", text, "tool_result", _name(name))]
    partial = told.get("partial") is True
    model = told.get("routeur_model") or told.get("model_name") if role == "assistant" else None
    lines = [SimplePart(role, text, "text", _name(name), _name(model), partial)] if text else []
    for call in [*(message.get("tool_calls") or ()), *(message.get("invalid_tool_calls") or ())]:
        arguments = _compact(call.get("args"))
        lines.append(SimplePart(role, arguments, "tool_call", _name(call.get("name")), _name(model), partial))
    return lines


def _langchain_usage(counted: Any) -> Usage | None:
    if not isinstance(counted, dict):
        return None
    inputs, outputs = _dict(counted.get("input_token_details")), _dict(counted.get("output_token_details"))
    return _usage(
        counted.get("input_tokens"),
        counted.get("output_tokens"),
        counted.get("total_tokens"),
        cached=inputs.get("cache_read"),
        audio=inputs.get("audio"),
        reasoning=outputs.get("reasoning"),
    )


# -- pydantic-ai --


def _pydantic_ai(data: Data) -> list[SimplePart]:
    if data["kind"] == "request":
        lines = [line for part in data["parts"] if (line := _request_part(part)) is not None]
        instructions = data.get("instructions")
        if isinstance(instructions, str) and instructions:
            lines.insert(0, SimplePart("system", clean_text(instructions)))
        return lines
    if data["kind"] == "response":
        model = MessageTransformer().extract_model_info("pydantic-ai", data)
        partial = data.get("state") == "interrupted"
        return [line for part in data["parts"] if (line := _response_part(part, model, partial)) is not None]
    raise ValueError("neither a request nor a response")


def _request_part(part: Data) -> SimplePart | None:
    kind = part["part_kind"]
    if kind == "system-prompt":
        return SimplePart("system", _content(part["content"]))
    if kind == "user-prompt":
        return SimplePart("user", _content(part["content"]))
    if kind == "tool-return":
        return SimplePart("tool", _compact(part["content"]), "tool_result", _name(part.get("tool_name")))
    if kind == "retry-prompt":
        text, tool = _compact(part["content"]), part.get("tool_name")
        return SimplePart("tool", text, "tool_result", _name(tool)) if tool else SimplePart("user", text)
    if kind in ("instruction", "instruction-baseline"):
        return SimplePart("system", _content(part.get("content", "")))
    return SimplePart("system", f"[{_name(kind)}]")


def _response_part(part: Data, model: str | None, partial: bool) -> SimplePart | None:
    kind = part["part_kind"]
    if kind == "text":
        text = _content(part["content"])
        return SimplePart("assistant", text, "text", None, model, partial) if text else None
    if kind == "thinking":
        return None
    if kind in ("tool-call", "builtin-tool-call"):
        arguments = _compact(part.get("args") if part.get("args") is not None else {})
        return SimplePart("assistant", arguments, "tool_call", _name(part.get("tool_name")), model, partial)
    if kind == "builtin-tool-return":
        return SimplePart("tool", _compact(part["content"]), "tool_result", _name(part.get("tool_name")))
    return SimplePart("assistant", f"[{_name(kind)}]", "text", None, model, partial)


def _pydantic_ai_usage(counted: Any) -> Usage | None:
    if not isinstance(counted, dict):
        return None
    details = _dict(counted.get("details"))
    first = counted.get("input_tokens", counted.get("request_tokens"))
    second = counted.get("output_tokens", counted.get("response_tokens"))
    reasoning = counted.get("output_reasoning_tokens") or details.get("reasoning_tokens")
    if not first and not second:
        return None  # what it says when the provider said nothing
    return _usage(
        first or 0,
        second or 0,
        counted.get("total_tokens"),
        cached=counted.get("cache_read_tokens") or details.get("cached_tokens"),
        audio=counted.get("input_audio_tokens") or None,
        reasoning=reasoning,
    )


# -- ours --


def _ours(data: Data) -> list[SimplePart]:
    role = Role(data["role"]).value
    text = _content(data.get("content", ""))
    name = _name(data.get("name"))
    if role == "tool":
        return [SimplePart(role, text, "tool_result", name)]
    lines = [SimplePart(role, text, "text", name)] if text else []
    for call in data.get("tool_calls") or ():
        lines.append(SimplePart(role, _compact(call.get("arguments")), "tool_call", _name(call.get("name"))))
    return lines


# -- common --

_READERS: dict[str, Callable[[Data], list[SimplePart]]] = {
    "langchain": _langchain,
    "pydantic-ai": _pydantic_ai,
    "message": _ours,
}
_ROLES = frozenset(role.value for role in Role)


def _content(content: Any) -> str:
    """The words of a text or of typed parts; what is no text is named."""
    if isinstance(content, str):
        return clean_text(content)
    if not isinstance(content, list | tuple):
        return _compact(content)
    return "".join(_block(block) for block in content)


def _block(block: Any) -> str:
    if isinstance(block, str):
        return clean_text(block)
    if not isinstance(block, dict):
        return _compact(block)
    kind = block.get("type") or block.get("kind")
    text = block.get("text", block.get("content") if kind in ("text-content", "structured-content") else None)
    if isinstance(text, str) and kind not in _THOUGHTS:
        return clean_text(text)
    if kind in _THOUGHTS:
        return ""
    if kind == "binary":
        family = str(block.get("media_type", "")).partition("/")[0]
        return _MEDIA.get(family, "[file]")
    return _MEDIA.get(str(kind), f"[{_name(kind)}]")


def _compact(value: Any) -> str:
    """JSON without blanks; text that is JSON is compacted, other text stays as it is."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return clean_text(value)
        if isinstance(value, str):
            return clean_text(value)
    try:
        return clean_text(orjson.dumps(value).decode())
    except TypeError:
        return clean_text(str(value))


def _usage(
    inputs: Any, outputs: Any, total: Any, *, cached: Any = None, audio: Any = None, reasoning: Any = None
) -> Usage | None:
    counts = [_count(inputs), _count(outputs)]
    if counts[0] is None or counts[1] is None:
        return None
    whole = _count(total)
    return Usage(
        input_tokens=counts[0],
        output_tokens=counts[1],
        total_tokens=counts[0] + counts[1] if whole is None else whole,
        cached_tokens=_count(cached),
        audio_tokens=_count(audio),
        reasoning_tokens=_count(reasoning),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None


def _dict(value: Any) -> Data:
    return value if isinstance(value, dict) else {}


def _name(value: Any) -> str | None:
    return None if value is None else clean_text(str(value))[:200]


def _is_answer(format: MessageFormat, data: Data) -> bool:
    if format == "langchain":
        return str(data.get("type")) in ("ai", "AIMessageChunk")
    return data.get("kind") == "response" if format == "pydantic-ai" else data.get("role") == "assistant"


def _role_of(data: Any) -> str:
    """The best guess for a message that cannot be read."""
    if not isinstance(data, dict):
        return "system"
    said = data.get("role") or _LANGCHAIN_ROLES.get(str(data.get("type")))
    said = said or {"request": "user", "response": "assistant"}.get(str(data.get("kind")))
    return said if isinstance(said, str) and said in _ROLES else "system"
