"""Questions as graphs ask them, and a yes or a no in what somebody says."""

import unicodedata
from typing import Any

import pytest

from services.approval_forms import call_in, decided, question_in, wants_words
from services.realtime.replies import decision_in

CALL = {"name": "send_mail", "args": {"to": "Bob", "cc": ["Eve"]}}
LANGCHAINS = {**CALL, "description": "Tool execution requires approval\n\nTool: send_mail\nArgs: {}"}
QUESTIONS = [
    ("Shall I?", "Shall I?"),
    ({"question": "Shall\nI?", "message": "no"}, "Shall I?"),
    ({"question": 0}, "0"),
    ({"prompt": "", "title": "Sure?"}, "Sure?"),
    ({"to": "Bob", "how_many": 2}, "May I go on with to: Bob, how many: 2?"),
    ({"action_requests": [CALL]}, 'May I call send mail with to: Bob, cc: ["Eve"]?'),
    ({"action_requests": [LANGCHAINS, {"name": "stop", "args": {}}]}, None),
    ({"action_requests": [{**CALL, "description": "Write to Bob?"}]}, "Write to Bob?"),
    ({"type": "tool_approval", "tool_call_id": "c", **LANGCHAINS}, 'May I call send mail with to: Bob, cc: ["Eve"]?'),
    (None, "May I go on?"),
    ({}, "May I go on?"),
    ([1, 2], "[1,2]"),
]


@pytest.mark.parametrize(("payload", "question"), QUESTIONS)
def test_a_payload_is_asked_in_words(payload: Any, question: str | None) -> None:
    if question is None:
        question = 'May I call send mail with to: Bob, cc: ["Eve"]? May I call stop?'
    assert question_in(payload).text == question


def test_nobody_is_asked_for_minutes() -> None:
    for payload in ("x" * 1_000_000, {"question": "y " * 500_000}, {"a": "b" * 100_000}, "\x00\ud800"):
        asked = question_in(payload)
        assert 0 < len(asked.text) <= 1_010
        asked.text.encode()
        assert asked.whole is (payload == "\x00\ud800")


@pytest.mark.parametrize("payload", ["", " \n", "\x00", {"question": "  "}, {"question": "\x00", "title": ""}])
def test_something_is_always_asked(payload: Any) -> None:
    assert question_in(payload).text.endswith("?")


def test_who_cannot_be_told_everything_is_told_how_much_is_left() -> None:
    calls = [{"name": "pay", "args": {"to": f"number {place}", "note": "w" * 90}} for place in range(20)]
    asked = question_in({"action_requests": calls})
    told = asked.text.count("May I call pay")
    assert asked.text.endswith(f"And {20 - told} more.")
    assert not asked.whole
    assert len(call_in({"question": "x" * 5_000_000})[1]) < 100


@pytest.mark.parametrize("gap", [" " * 20_000, "\n" * 20_000])
def test_nothing_hides_behind_a_gap(gap: str) -> None:
    for payload in (
        {"question": f"May I pay{gap}everything?"},
        {"action_requests": [{"name": "pay", "args": {"a": f"1{gap}everything"}}]},
    ):
        asked = question_in(payload)
        assert asked.whole
        assert "everything?" in asked.text


def test_a_single_call_has_its_name_and_arguments() -> None:
    assert call_in({"action_requests": [CALL]}) == ("send_mail", '{"to":"Bob","cc":["Eve"]}')
    assert call_in({"type": "tool_approval", **CALL})[0] == "send_mail"
    assert call_in({"action_requests": [CALL, CALL]})[0] == "interrupt"
    assert call_in("Sure?") == ("interrupt", '"Sure?"')


def test_each_form_is_answered_in_its_own() -> None:
    assert decided({"question": "?"}, approved=True, reason="yes") == {"approved": True, "reason": "yes"}
    assert decided({"action_requests": [CALL, CALL]}, approved=False, reason="no") == {
        "decisions": [{"type": "reject", "message": "no"}] * 2
    }
    assert decided({"type": "tool_approval", **CALL}, approved=True, reason="yes") == {"type": "approve"}
    assert wants_words({"question": "When?", "answer": "text"})
    assert not wants_words({"answer": "yes"})


@pytest.mark.parametrize(
    "said",
    [
        "Yes.", "yes please", "Okay, go ahead!", "No problem", "Um, yes", "That’s fine.", "Yes, send it to Bob",
        "I approve", "Well, I think yes", "Oui, d’accord", "Pas de problème", "Ja, bitte", "Sí, claro", "sim", "Sì",
        "yes " * 30, "Yes, of course, thank you", "Okay, do it", "yes you can", "Yes, the mail",
    ],
)  # fmt: skip
def test_a_clear_yes_is_one(said: str) -> None:
    assert decision_in(said, "May I send the mail to Bob?") is True


@pytest.mark.parametrize(
    "said",
    ["No.", "no thank you", "Not yet", "Please don't", "I'd rather not", "Stop!", "Non merci", "Nein", "No, yes, no"],
)
def test_a_no_is_one(said: str) -> None:
    assert decision_in(said) is False


@pytest.mark.parametrize(
    "said",
    [
        "", "…", "What is in it?", "Yes, but wait", "yes no", "I don't know", "Not sure", "The yes men are here",
        "Yes if it is cheap", "oui mais pas maintenant", "Maybe", "si tu veux", "yesterday", "nothing",
        "Send it", "ok\u200bno", "Okay, refuse it", "Yes, reject it", "OK, I decline", "okay, denied", "Okay, nope",
        "ja nee", "sim, não faça isso", "d'accord, jamais", "claro que nunca", "oui, pas ça", "yes, dont", "ok don`t",
        "Okay. Stopp!", "Okay, forget it", "Okay, what is in it?", "Yes?", "Yes, I have a question", "Go on, explain",
        "Do it tomorrow", "Correct the name to Robert", "Confirm the address with me", "Yes, send the letter to Bob",
        "Yes, send the mail to Eve", "okay can you send the mail", unicodedata.normalize("NFD", "sim, não"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_neither(said: str) -> None:
    assert decision_in(said, "May I send the mail to Bob?") is None
