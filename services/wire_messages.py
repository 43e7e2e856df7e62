"""Messages as OpenAI's clients send them: stored, told apart from what a session knows already, and sent on."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any

import orjson
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, convert_to_openai_messages

from domain.runs import NewMessage
from services.agent_messages import new_message_id, record_of

WireMessage = dict[str, Any]

#: What stands between two messages of an agent's answer where clients are shown one.
BETWEEN = "\n\n"

_TYPES = {"user": "human", "assistant": "ai", "system": "system", "developer": "system", "tool": "tool"}
_KNOWN_FROM = 2  # messages that must be the same before a client is taken to send the whole conversation each time


def wire_text(message: Mapping[str, Any]) -> str:
    """The words of a message."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content or () if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def wire_question(messages: Sequence[Mapping[str, Any]]) -> str:
    """What was asked: the text of the last thing that a human said."""
    return wire_text(next((one for one in reversed(messages) if one.get("role") == "user"), messages[-1]))


def answers_in(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the tool calls that these messages answer."""
    return [message["tool_call_id"] for message in messages if message["role"] == "tool"]


def wire_record(message: Mapping[str, Any], at: datetime, message_id: str | None = None) -> NewMessage:
    """A message as it is stored: in LangChain's dictionary form, as everything that our own agents say."""
    kind = _TYPES[message["role"]]
    data: dict[str, Any] = {
        "content": message.get("content") or "",
        "additional_kwargs": {},
        "response_metadata": {},
        "type": kind,
        "name": message.get("name"),
        "id": message_id or new_message_id(),
    }
    if kind == "ai":
        calls = [_stored_call(call) for call in message.get("tool_calls") or ()]
        data["tool_calls"] = [call for call in calls if call["type"] == "tool_call"]
        data["invalid_tool_calls"] = [call for call in calls if call["type"] != "tool_call"]
        data["usage_metadata"] = None
    elif kind == "tool":
        data |= {"tool_call_id": message["tool_call_id"], "artifact": None, "status": "success"}
    return record_of({"type": kind, "data": data}, at)


def to_wire(messages: Iterable[BaseMessage]) -> list[WireMessage]:
    """LangChain's messages as OpenAI's wire wants them; what LangChain does not know there goes as it came."""
    wire: list[WireMessage] = []
    for message in messages:
        try:
            wire += convert_to_openai_messages([message])
        except (AttributeError, KeyError, TypeError, ValueError):
            plain = message.model_copy(update={"content": ""})
            wire += [{**one, "content": message.content} for one in convert_to_openai_messages([plain])]
    return wire


def unsaid(stored: Sequence[BaseMessage], sent: Sequence[WireMessage]) -> list[int]:
    """Which of `sent`, by place, a session does not know yet.

    Some clients send only what is new, and what is to be obeyed each time: the system message that came last is left
    out. Most send the whole conversation each time. Who repeats how the session began (two messages or more) is of the
    second kind: as much as is the same is left out, and so are system messages that are stored already. Asked for the
    same answer again, the last question is new once more.
    """
    known = [message for message in stored if message.type != "system"]
    spoken = [place for place, message in enumerate(sent) if not _is_rule(message)]
    same = _repeated(known, [sent[place] for place in spoken])
    obeyed = [str(message.text) for message in stored if message.type == "system"]
    if same < _KNOWN_FROM:
        return [
            place
            for place, message in enumerate(sent)
            if not (_is_rule(message) and [wire_text(message)] == obeyed[-1:])
        ]
    rules = set(obeyed)
    said = set(spoken[:same]) | {
        place for place, message in enumerate(sent) if _is_rule(message) and wire_text(message) in rules
    }
    new = [place for place in range(len(sent)) if place not in said]
    if any(not _is_rule(sent[place]) for place in new):
        return new
    asked = max((place for place, message in enumerate(sent) if message["role"] == "user"), default=len(sent) - 1)
    return list(range(asked, len(sent)))


def _repeated(known: Sequence[BaseMessage], sent: Sequence[WireMessage]) -> int:
    """How many of `sent` say again how `known` begins."""
    same = at = 0
    while same < len(sent) and at < len(known):
        length = _length_of(known, at, sent[same])
        if length == 0:
            break
        at += length
        same += 1
    return same


def _length_of(known: Sequence[BaseMessage], at: int, message: WireMessage) -> int:
    """How many messages from `at` on are that one.

    Of an agent's turn, its tools' calls and answers among it, clients have seen one text: the last in a whole answer,
    all of them in a stream.
    """
    if _key_of_stored(known[at]) == _key_of(message):
        return 1
    if message["role"] != "assistant" or message.get("tool_calls"):
        return 0
    turn = list(takewhile(lambda one: isinstance(one, AIMessage | ToolMessage), known[at:]))
    texts = [str(one.text) for one in turn if isinstance(one, AIMessage) and one.text]
    shown = {texts[-1].strip(), BETWEEN.join(texts).strip()} if texts else set()
    return len(turn) if wire_text(message).strip() in shown else 0


def _is_rule(message: WireMessage) -> bool:
    return message["role"] in ("system", "developer")


def _key_of_stored(message: BaseMessage) -> tuple[Any, ...]:
    if isinstance(message, ToolMessage):
        return ("tool", message.tool_call_id)
    calls = tuple(call["id"] for call in message.tool_calls) if isinstance(message, AIMessage) else ()
    return (message.type, str(message.text), calls)


def _key_of(message: WireMessage) -> tuple[Any, ...]:
    if message["role"] == "tool":
        return ("tool", message["tool_call_id"])
    calls = tuple(call.get("id") for call in message.get("tool_calls") or ())
    return (_TYPES[message["role"]], wire_text(message), calls)


def _stored_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or call.get("custom") or {}
    name, text = function.get("name") or "", function.get("arguments") or function.get("input") or ""
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    if isinstance(arguments, dict) and name:
        return {"name": name, "args": arguments, "id": call.get("id"), "type": "tool_call"}
    return {"name": name, "args": text, "id": call.get("id"), "error": "not a JSON object", "type": "invalid_tool_call"}
