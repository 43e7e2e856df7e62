"""What graphs ask of humans, in the forms that are known: a question for the ear, a call for the screen, and the value
that each form wants for an answer. Pure."""

from collections.abc import Mapping
from typing import Any

from domain.text import clean_text
from services.agent_messages import to_json

_MOST_CHARS = 1_000  # of a question: nobody listens longer
_MOST_VALUE = 200  # characters of one argument that is read out
#: Where payloads have their question, the most telling first.
_QUESTIONS = ("question", "prompt", "message", "description", "text", "title")


def question_in(payload: Any) -> str:
    """The question that a payload of `interrupt` asks, in words; one is made where it has none."""
    if isinstance(payload, str) and payload.strip():
        return _short(payload)
    if isinstance(payload, Mapping):
        calls = _calls_in(payload)
        if calls:
            return _short(" ".join(map(_asked_for, calls)))
        for name in _QUESTIONS:
            if payload.get(name) not in (None, ""):
                return _short(str(payload[name]))
        if payload:
            return _short(f"May I go on with {_told(payload)}?")
    return "May I go on?" if payload is None or payload in ({}, "") else _short(to_json(payload))


def call_in(payload: Any) -> tuple[str, str]:
    """The name and the arguments (JSON) of what is asked for; else `interrupt` and the payload."""
    calls = _calls_in(payload) if isinstance(payload, Mapping) else []
    if len(calls) == 1:
        return str(calls[0].get("name") or "interrupt"), to_json(calls[0].get("args") or {})
    return "interrupt", to_json(payload)


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
        parts.append(f"{str(name).replace('_', ' ')}: {_short(text, _MOST_VALUE)}")
    return ", ".join(parts)


def _short(text: str, limit: int = _MOST_CHARS) -> str:
    """In one breath."""
    plain = " ".join(clean_text(text[: limit * 4]).split())
    return plain if len(plain) <= limit else plain[:limit].rsplit(" ", 1)[0] + " …"
