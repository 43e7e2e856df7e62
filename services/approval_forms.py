"""What graphs ask of humans, in the forms that are known: a question for the ear, a call for the screen, and the value
that each form wants for an answer. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domain.text import clean_text
from services.agent_messages import to_json

_MOST_CHARS = 1_000  # of a question: nobody listens longer
_MOST_ARGUMENTS = 64_000  # characters of JSON that a screen is sent
_MOST_NAME = 200  # characters
#: Where payloads have their question, the most telling first.
_QUESTIONS = ("question", "prompt", "message", "description", "text", "title")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in words. `whole`: everything that is asked for is in it, so that a spoken yes is one to all of it."""

    text: str
    whole: bool = True


def question_in(payload: Any) -> Asked:
    """The question that a payload of `interrupt` asks, in words; one is made where it has none."""
    if isinstance(payload, str):
        return _short(payload)
    if isinstance(payload, Mapping):
        calls = _calls_in(payload)
        if calls:
            return _all_of(calls)
        for name in _QUESTIONS:
            if payload.get(name) is not None and (text := _one_breath(str(payload[name]))):
                return _short(text)
        told = _told({name: value for name, value in payload.items() if _one_breath(str(value))})
        return _short(f"May I go on with {told}?" if told else "")
    return _short("" if payload is None else to_json(payload))


def call_in(payload: Any) -> tuple[str, str]:
    """The name and the arguments (JSON) of what is asked for, else `interrupt` and the payload; too much is named."""
    calls = _calls_in(payload) if isinstance(payload, Mapping) else []
    name, asked = "interrupt", payload
    if len(calls) == 1:
        name, asked = str(calls[0].get("name") or name)[:_MOST_NAME], calls[0].get("args") or {}
    arguments = to_json(asked)
    if len(arguments) > _MOST_ARGUMENTS:
        arguments = to_json({"truncated": True, "characters": len(arguments)})
    return name, arguments


def wants_words(payload: Any) -> bool:
    """True when what is said is itself the answer: the payload says `"answer": "text"`."""
    return isinstance(payload, Mapping) and payload.get("answer") == "text"


def decided(payload: Any, *, approved: bool, reason: str | None) -> Any:
    """What the waiting node is handed: LangChain's middleware asks in forms of its own, and is answered in them."""
    one = {"type": "approve"} if approved else {"type": "reject", "message": reason or "Rejected."}
    if isinstance(payload, Mapping) and isinstance(payload.get("action_requests"), list):
        return {"decisions": [one for _ in payload["action_requests"]]}
    if isinstance(payload, Mapping) and payload.get("type") == "tool_approval":
        return one
    return {"approved": approved, "reason": reason}


def _calls_in(payload: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """LangChain's middleware asks about one call (`per_call`) or several (`batched`)."""
    if payload.get("type") == "tool_approval":
        return [payload]
    asked = payload.get("action_requests")
    return [one for one in asked if isinstance(one, Mapping)] if isinstance(asked, list) else []


def _asked_for(call: Mapping[str, Any]) -> str:
    """One call as a question; a description that its author has written goes before ours."""
    description, name = str(call.get("description") or ""), str(call.get("name") or "a tool")
    if description and "\n\nTool: " not in description:  # LangChain's own is made for a screen
        return description
    arguments = call.get("args")
    told = f" with {_told(arguments)}" if isinstance(arguments, Mapping) and arguments else ""
    return f"May I call {name.replace('_', ' ')}{told}?"


def _told(values: Mapping[str, Any]) -> str:
    """Names and values, to be read out."""
    parts = []
    for name, value in values.items():
        text = value if isinstance(value, str) else to_json(value)
        parts.append(f"{str(name).replace('_', ' ')}: {_one_breath(text)}")
    return ", ".join(parts)


def _all_of(calls: list[Mapping[str, Any]]) -> Asked:
    """As many as can be listened to, and how many more there are."""
    questions = [_one_breath(_asked_for(call)) for call in calls]
    told: list[str] = []
    for question in questions:
        if sum(map(len, told)) + len(question) > _MOST_CHARS:
            break
        told.append(question)
    left = len(questions) - len(told)
    if not told:
        return _short(questions[0])
    return Asked(" ".join([*told, f"And {left} more."] if left else told), whole=not left)


def _one_breath(text: str) -> str:
    return " ".join(clean_text(text).split())


def _short(text: str) -> Asked:
    plain = _one_breath(text) or "May I go on?"
    if len(plain) <= _MOST_CHARS:
        return Asked(plain)
    return Asked(plain[:_MOST_CHARS].rsplit(" ", 1)[0] + " …", whole=False)
