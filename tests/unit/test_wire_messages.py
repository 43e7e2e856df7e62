"""What a client repeats is told from what it adds, whatever habits it has."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage, messages_from_dict

from services.agent_messages import from_records
from services.wire_messages import answers_in, to_wire, unsaid, wire_question, wire_record, wire_text

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, *calls: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        function = {"name": "f", "arguments": "{}"}
        message["tool_calls"] = [{"id": call, "type": "function", "function": function} for call in calls]
    return message


def system(text: str, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": text}


def result(call: str, text: str = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": text}


def stored(*messages: dict[str, Any]) -> list[BaseMessage]:
    """As a session gives them back."""
    return messages_from_dict([orjson.loads(wire_record(message, NOW).data) for message in messages])


TALK = [user("1"), assistant("one"), user("2"), assistant("two")]
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[int]]] = {
    "a new session": ([], [system("r"), user("1")], [0, 1]),
    "only what is new": (TALK, [user("3")], [0]),
    "everything each time": (TALK, [*TALK, user("3")], [4]),
    "everything, with rules": ([system("r"), *TALK], [system("r"), *TALK, user("3")], [5]),
    "rules that the session has not": (TALK, [system("r"), *TALK, user("3")], [0, 5]),
    "rules that have changed": ([system("r"), *TALK], [system("s"), *TALK, user("3")], [0, 5]),
    "developer is system": ([system("r"), *TALK], [system("r", "developer"), *TALK, user("3")], [5]),
    "the same answer again": (TALK, [user("1"), assistant("one"), user("2")], [2]),
    "all of it again": (TALK, TALK, [2, 3]),
    "another beginning": (TALK, [user("0"), assistant("zero"), user("3")], [0, 1, 2]),
    "one question repeated": (TALK, [user("1")], [0]),
    "the beginning edited": (TALK, [user("1"), assistant("other"), user("3")], [0, 1, 2]),
    "a call and its answer": (
        [user("1"), assistant(None, "c")],
        [user("1"), assistant(None, "c"), result("c")],
        [2],
    ),
    "two calls answered": (
        [user("1"), assistant("", "c", "d")],
        [user("1"), assistant(None, "c", "d"), result("c"), result("d")],
        [2, 3],
    ),
    "a call that was answered before": (
        [user("1"), assistant(None, "c"), result("c"), assistant("42")],
        [user("1"), assistant(None, "c"), result("c"), assistant("42"), user("2")],
        [4],
    ),
    "only the answer of a tool": ([user("1"), assistant(None, "c")], [result("c")], [0]),
    "parts are their text": (TALK, [user([{"type": "text", "text": "1"}]), *TALK[1:], user("3")], [4]),
}


@pytest.mark.parametrize(("known", "sent", "new"), CASES.values(), ids=CASES)
def test_what_is_new_is_found(known: list[dict[str, Any]], sent: list[dict[str, Any]], new: list[int]) -> None:
    assert unsaid(stored(*known), sent) == new


def test_what_is_stored_comes_back_as_it_was_sent() -> None:
    odd = {"role": "user", "content": [{"type": "file", "file": {"unheard_of": 1}}]}
    sent = [system("r"), user("1"), assistant(None, "c"), result("c"), assistant("42"), odd]
    told = to_wire(stored(*sent))
    assert [one["role"] for one in told] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert told[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert told[3]["tool_call_id"] == "c"
    assert told[5]["content"] == odd["content"]


def test_arguments_that_are_no_json_are_kept_as_they_are() -> None:
    message = assistant(None, "c")
    message["tool_calls"][0]["function"]["arguments"] = "{cut"
    [kept] = stored(message)
    assert isinstance(kept, AIMessage)
    assert kept.tool_calls == []
    assert kept.invalid_tool_calls[0]["args"] == "{cut"


def test_the_question_is_the_last_thing_a_human_said() -> None:
    assert wire_question([user("1"), assistant("one"), user("2"), result("c")]) == "2"
    assert wire_question([system("r")]) == "r"


@pytest.mark.parametrize("content", [None, "", [], [{"type": "file", "text": 5}], [{"type": "file"}], ["x"]])
def test_what_has_no_words_has_none(content: Any) -> None:
    assert wire_text({"role": "user", "content": content}) == ""


def test_calls_that_are_answered_now_are_not_answered_for_the_tool() -> None:
    assert answers_in([user("x"), result("c"), result("d")]) == ["c", "d"]
    assert from_records([], answers_in([result("c")])) == []


def test_every_kind_of_message_is_read_by_langchain() -> None:
    kinds = [type(one) for one in stored(system("r"), user("1"), assistant("a"), result("c"))]
    assert kinds == [SystemMessage, HumanMessage, AIMessage, ToolMessage]
