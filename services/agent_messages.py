"""Our messages and LangChain's, both ways: with `agent_stream` the only reader and writer of LangChain messages."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from uuid_utils import uuid7

from domain.enums import Role
from domain.messages import Message
from domain.usage import Usage


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


def plain(value: Any) -> Any:
    """`value` as plain JSON data; what is not becomes its text."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, datetime | UUID):
        return str(value)
    if isinstance(value, BaseMessage):
        return {"type": value.type, "text": str(value.text)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return repr(value)[:1_000]
