"""Our messages and LangChain's, both ways: with `agent_stream` the only reader and writer of LangChain messages."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    messages_from_dict,
)
from uuid_utils import uuid7

from domain.enums import Role
from domain.messages import Message
from domain.runs import NewMessage
from domain.sessions import RawMessage
from domain.text import clean_text
from domain.usage import Usage
from services.message_transformer import MessageTransformer

logger = logging.getLogger(__name__)

_TRANSFORMER = MessageTransformer()
_MAX_DEPTH = 100  # levels; orjson writes 254, Python's stack holds some 400
_UNANSWERED = "The run ended before this tool answered."


def to_langchain(messages: Iterable[Message]) -> list[BaseMessage]:
    """Our messages as LangChain's, each with an id of its own."""
    return [_to_langchain(message) for message in messages]


def _to_langchain(message: Message) -> BaseMessage:
    content: Any = message.content
    if not isinstance(content, str):
        content = [part.model_dump() for part in content]
    match message.role:
        case Role.SYSTEM:
            return SystemMessage(content, id=new_message_id(), name=message.name)
        case Role.USER:
            return HumanMessage(content, id=new_message_id(), name=message.name)
        case Role.TOOL:
            return ToolMessage(content, id=new_message_id(), name=message.name, tool_call_id=message.tool_call_id or "")
        case Role.ASSISTANT:
            calls = [{"id": call.id, "name": call.name, "args": call.arguments} for call in message.tool_calls]
            return AIMessage(content, id=new_message_id(), name=message.name, tool_calls=calls)


def question_of(asked: Sequence[BaseMessage]) -> str:
    """What was asked: the text of the last thing that a human said."""
    question = next((message for message in reversed(asked) if message.type == "human"), asked[-1])
    return str(question.text)


def to_record(message: BaseMessage, at: datetime) -> NewMessage:
    """A LangChain message as it is stored: all its fields, and the lines that a reader sees."""
    return record_of({"type": message.type, "data": message.__dict__}, at)


def partial_record(message_id: str, text: str, reason: str, model: str, at: datetime) -> NewMessage:
    """What had arrived of an answer that was cut, marked so."""
    told = {"partial": True, "reason": reason, "routeur_model": model}
    return record_of({"type": "ai", "data": {"content": text, "id": message_id, "response_metadata": told}}, at)


def record_of(data: dict[str, Any], at: datetime) -> NewMessage:
    """A message in LangChain's dictionary form, to be stored."""
    return NewMessage("langchain", to_json(data), _TRANSFORMER.simple_parts("langchain", data), at)


def to_json(value: Any) -> str:
    """JSON text of whatever a graph may have put into a message; what JSON cannot say becomes its text."""
    try:
        return orjson.dumps(value, default=plain).decode()
    except TypeError:  # keys that are no text, integers beyond 64 bit, half surrogate pairs
        return clean_text(json.dumps(plain(value), ensure_ascii=False))


def asked_again(stored: Sequence[RawMessage]) -> list[BaseMessage]:
    """Stored messages as new ones, to be said once more: their ids are not taken along."""
    messages = from_records(stored)
    for message in messages:
        message.id = None
    return messages


def from_records(stored: Sequence[RawMessage], answers: Iterable[str] = ()) -> list[BaseMessage]:
    """Stored messages as a conversation that every provider takes: each tool call is answered, nothing is empty.

    Args:
        answers: ids of calls whose answers come after these messages.
    """
    conversation: list[BaseMessage] = []
    for raw in stored:
        conversation += _from_record(raw)
    answered = {message.tool_call_id for message in conversation if isinstance(message, ToolMessage)} | set(answers)
    called: set[str | None] = set()
    whole: list[BaseMessage] = []
    for message in conversation:
        if isinstance(message, ToolMessage) and message.tool_call_id not in called:
            continue  # its call was cut off
        whole.append(message)
        if isinstance(message, AIMessage):
            called |= {call["id"] for call in message.tool_calls}
            whole += [
                ToolMessage(_UNANSWERED, name=call["name"], tool_call_id=call["id"], status="error")
                for call in message.tool_calls
                if call["id"] not in answered
            ]
    return whole


def ids_of(stored: Iterable[RawMessage]) -> set[str | None]:
    """The ids of all of them, of those too that are no part of a conversation any more (nothing of them was heard)."""
    return {(raw.message_data.get("data") or {}).get("id") for raw in stored if raw.format == "langchain"}


def _from_record(raw: RawMessage) -> list[BaseMessage]:
    if raw.format == "langchain":
        try:
            found = messages_from_dict([raw.message_data])
        except (KeyError, TypeError, ValueError):
            logger.warning("a stored message cannot be read", extra={"session_id": raw.session_id})
            return []
        return [message for message in found if message.content or getattr(message, "tool_calls", None)]
    if raw.format == "message":
        return to_langchain([Message.model_validate(raw.message_data)])
    lines = _TRANSFORMER.transform_messages([raw])
    spoken = [line for line in lines if line.kind == "text" and line.role is not Role.TOOL and line.content]
    return to_langchain(Message(role=line.role, content=line.content) for line in spoken)


def usage_of(message: AIMessage) -> Usage | None:
    """What the provider reported with that message."""
    counted = message.usage_metadata
    if counted is None:
        return None
    inputs, outputs = counted.get("input_token_details", {}), counted.get("output_token_details", {})
    return Usage(
        input_tokens=counted["input_tokens"],
        output_tokens=counted["output_tokens"],
        total_tokens=counted["total_tokens"],
        cached_tokens=inputs.get("cache_read"),
        audio_tokens=inputs.get("audio"),
        reasoning_tokens=outputs.get("reasoning"),
    )


def new_message_id() -> str:
    """An id for a message that has none."""
    return f"msg_{uuid7().hex}"


def messages_in(update: Any) -> Iterator[BaseMessage]:
    """Every message that a node's update holds, whatever key it is under."""
    if isinstance(update, dict):
        for value in update.values():
            if isinstance(value, BaseMessage):
                yield value
            elif isinstance(value, list | tuple):
                yield from (item for item in value if isinstance(item, BaseMessage))
    elif isinstance(update, list | tuple):
        for one in update:
            yield from messages_in(one)


def plain(value: Any, depth: int = 0) -> Any:
    """`value` as plain JSON data; what is not becomes its text, and what is deeper than 100 levels "…"."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, int | float | bool):
        return value
    if depth > _MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {clean_text(str(key)): plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one, depth + 1) for one in value]
    if isinstance(value, datetime | UUID):
        return str(value)
    if isinstance(value, BaseMessage):
        return {"type": value.type, "text": str(value.text)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return repr(value)[:1_000]
