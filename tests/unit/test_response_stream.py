"""A response and the events that build it: whatever a run tells, OpenAI's own accumulator comes to the same."""

from datetime import UTC, datetime
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from uuid_utils import uuid7

from api.streaming.openai_chunks import ToolView
from api.streaming.openai_responses import ResponseStream
from domain.enums import FinishReason
from domain.errors import UpstreamFailure
from domain.events import (
    AgentEvent,
    Envelope,
    EventLaws,
    ReasoningDelta,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunId,
    RunResumed,
    RunStarted,
    RunTimedOut,
    TextDelta,
    ToolFinished,
    ToolStarted,
)
from domain.usage import Usage
from tests.unit.test_event_laws import MIDDLE, STARTED, TERMINAL, admitted

RUN = RunId(str(uuid7()))
NOW = datetime.now(UTC)
USAGE = Usage(input_tokens=1, output_tokens=2, total_tokens=3)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ECHO = {"model": "agent/simple@offline/rules", "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
RESUMED = st.builds(RunResumed, reason=st.sampled_from(["approval", "crash"]))
VIEWS = st.sampled_from(get_args(ToolView))


def new(**more: Any) -> ResponseStream:
    return ResponseStream(RUN, ECHO, **more)


def read(raw: bytes) -> list[dict[str, Any]]:
    """The frames, checked to be well formed: strictly typed, named like their data, and nothing that raises."""
    events = []
    for frame in raw.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert "error" not in event or event["type"] == "error"
        EVENT.validate_python(event)
        if "response" in event:
            Response.model_validate(event["response"])
        events.append(event)
    return events


def accumulated(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What OpenAI's own accumulator makes of them."""
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(EVENT.validate_python(event))
    kept: dict[int, Any] = state._completed_output
    assert sorted(kept) == list(range(len(kept)))
    return [kept[place].model_dump(exclude_unset=True) for place in sorted(kept)]


def envelopes(events: list[AgentEvent]) -> list[Envelope]:
    return [Envelope(RUN, seq, NOW, event) for seq, event in enumerate(events, 1)]


def told(events: list[AgentEvent], **more: Any) -> tuple[list[dict[str, Any]], ResponseStream]:
    built = new(**more)
    return read(built.begin() + built.envelopes(envelopes(events))), built


def check(events: list[dict[str, Any]], built: ResponseStream) -> None:
    """What holds of every stream."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] in ("response.completed", "response.incomplete", "response.failed")
    assert built.ended
    assert events[-1]["response"] == built.response
    assert accumulated(events) == built.response["output"]
    ids = [item["id"] for item in built.response["output"]]
    assert len(set(ids)) == len(ids)
    grown: dict[int, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            grown[event["output_index"]] = grown.get(event["output_index"], "") + event["delta"]
    for place, item in enumerate(built.response["output"]):
        match item["type"]:
            case "message":
                whole = item["content"][0]["text"]
            case "reasoning":
                whole = item["summary"][0]["text"]
            case _:
                whole = item["arguments"]
        assert grown.get(place, "") == whole, "the pieces are the whole"


@settings(deadline=None)  # the SDK's types are built when they are first needed
@given(st.lists(st.one_of(MIDDLE, RESUMED), max_size=30), TERMINAL, VIEWS)
def test_whatever_an_agent_tells_the_sdk_builds_the_same_response(
    middle: list[AgentEvent], terminal: AgentEvent, view: ToolView
) -> None:
    laws = EventLaws()
    story = admitted(laws, [STARTED, *middle])
    story += admitted(laws, [*laws.closings(), terminal])
    events, built = told(story, tools=view)
    check(events, built)
    words = "".join(one.text for one in story if isinstance(one, TextDelta))
    said = [item["content"][0]["text"] for item in built.response["output"] if item["type"] == "message"]
    assert sorted("".join(said)) == sorted(words), "nothing that was said is lost or said twice"


PIECE = st.one_of(
    st.tuples(st.just("text"), st.text(min_size=1, max_size=4)),
    st.tuples(st.just("reasoning"), st.text(min_size=1, max_size=4)),
    st.tuples(st.sampled_from(["0", "1", "2"]), st.text(max_size=4)),
)


@settings(deadline=None)  # the SDK's types are built when they are first needed
@given(st.lists(PIECE, max_size=30), st.sampled_from(["stop", "length", "fail", "cancel"]))
def test_however_a_model_mixes_its_pieces_each_call_and_the_answer_stay_whole(
    pieces: list[tuple[str, str]], end: str
) -> None:
    built = new(message_id="msg_1")
    raw = built.begin()
    for kind, piece in pieces:
        if kind == "text":
            raw += built.text(piece)
        elif kind == "reasoning":
            raw += built.reasoning(piece)
        else:
            raw += built.call(kind, f"call_{kind}", "clock", piece)
    if end == "fail":
        raw += built.fail(UpstreamFailure("cut", code="upstream_cut"), USAGE)
    else:
        raw += built.cancel(USAGE) if end == "cancel" else built.finish(end, USAGE, NOW)
    check(read(raw), built)
    output = built.response["output"]
    messages = [item for item in output if item["type"] == "message"]
    assert len(messages) == any(kind == "text" for kind, _ in pieces)
    assert "".join(item["content"][0]["text"] for item in messages) == "".join(
        piece for kind, piece in pieces if kind == "text"
    )
    for item in (item for item in output if item["type"] == "function_call"):
        whole = "".join(piece for kind, piece in pieces if f"call_{kind}" == item["call_id"])
        assert item["arguments"] == (whole or ("{}" if end in ("stop", "length") else ""))


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


FINISHED = RunFinished(output="x", model="offline/rules", finish_reason=FinishReason.STOP, usage=USAGE)


def test_a_text_comes_in_the_order_that_clients_expect() -> None:
    events, built = told(
        [
            STARTED,
            TextDelta(text="a", message_id="m"),
            TextDelta(text="b", message_id="m"),
            TextDelta(text="", message_id="m", done=True),
            FINISHED,
        ]
    )
    assert types(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0]["response"]["output"] == events[2]["item"]["content"] == []
    assert events[3]["part"]["text"] == ""
    assert events[4]["logprobs"] == []
    assert built.response["completed_at"] == int(NOW.timestamp())
    assert built.response["usage"]["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}


def test_a_thought_is_over_when_its_answer_begins() -> None:
    events, _ = told(
        [
            STARTED,
            ReasoningDelta(text="hm", message_id="m"),
            TextDelta(text="a", message_id="m"),
            TextDelta(text="", message_id="m", done=True),
            FINISHED,
        ]
    )
    assert types(events)[2:9] == [
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done", "output_item.added",
    ]  # fmt: skip


def test_two_calls_whose_pieces_are_mixed_are_two_calls() -> None:
    built = new(message_id="m")
    raw = built.begin() + built.call("0", "c0", "clock", "") + built.call("1", "c1", "sum", '{"a"')
    raw += built.call("0", "", "", '{"zone"') + built.call("1", "", "", ": 1}") + built.call("0", "", "", ": 2}")
    raw += built.finish("tool_calls", USAGE, NOW)
    check(read(raw), built)
    calls = [(item["call_id"], item["name"], item["arguments"]) for item in built.response["output"]]
    assert calls == [("c0", "clock", '{"zone": 2}'), ("c1", "sum", '{"a": 1}')]
    assert built.response["status"] == "completed"


def test_a_call_without_arguments_has_an_empty_object() -> None:
    built = new(message_id="m")
    raw = built.begin() + built.call("0", "c0", "clock", "") + built.finish("tool_calls", None, NOW)
    check(read(raw), built)
    assert built.response["output"][0]["arguments"] == "{}"


def test_messages_of_agents_that_speak_side_by_side_stay_apart() -> None:
    story: list[AgentEvent] = [STARTED]
    for word in ("one ", "two ", "three"):
        story += [TextDelta(text=word, message_id="a"), TextDelta(text=word.upper(), message_id="b")]
    story += [TextDelta(text="", message_id=name, done=True) for name in ("b", "a")]
    events, built = told([*story, FINISHED])
    check(events, built)
    assert [item["content"][0]["text"] for item in built.response["output"]] == ["one two three", "ONE TWO THREE"]


@pytest.mark.parametrize("view", ["calls", "reasoning"])
def test_a_call_id_that_comes_back_is_another_call(view: ToolView) -> None:
    story: list[AgentEvent] = [STARTED]
    for _ in range(2):  # as models do that count their calls anew in each answer
        story += [ToolStarted(call_id="call_1", name="clock"), ToolFinished(call_id="call_1", name="clock", output="x")]
    events, built = told([*story, FINISHED], tools=view)
    check(events, built)
    assert len(built.response["output"]) == 2


@pytest.mark.parametrize(
    ("asked", "named"),
    [("agent/simple@offline/rules", "agent/simple@mistral/spare@2"), ("vllm/some@1", "mistral/spare@2")],
)
def test_what_served_in_the_end_is_what_the_response_names(asked: str, named: str) -> None:
    built = ResponseStream(RUN, {**ECHO, "model": asked})
    built.envelopes(envelopes([STARTED, FINISHED.model_copy(update={"model": "mistral/spare@2"})]))
    assert built.response["model"] == named


@pytest.mark.parametrize(
    ("terminal", "status", "last", "code"),
    [
        (RunFailed(error="rate_limited", code="busy", message="y"), "failed", "failed", "rate_limit_exceeded"),
        (RunFailed(error="internal", code="x", message="y"), "failed", "failed", "server_error"),
        (RunTimedOut(limit=1.0, message="late"), "failed", "failed", "server_error"),
        (RunCancelled(reason="z"), "cancelled", "incomplete", None),
    ],
    ids=["busy", "failed", "late", "cancelled"],
)  # fmt: skip
def test_a_bad_end_closes_what_is_open_and_says_why(terminal: AgentEvent, status: str, last: str, code: Any) -> None:
    story: list[AgentEvent] = [STARTED, TextDelta(text="half", message_id="m")]
    events, built = told([*story, terminal])
    check(events, built)
    assert (events[-1]["type"], built.response["status"]) == (f"response.{last}", status)
    assert (built.response["error"] or {}).get("code") == code
    assert built.response["output"][0]["status"] == "incomplete"
    assert built.response["completed_at"] is None


@pytest.mark.parametrize(("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_is_incomplete_and_says_by_what(reason: str, why: str) -> None:
    events, built = told([STARTED, FINISHED.model_copy(update={"finish_reason": FinishReason(reason)})])
    assert events[-1]["type"] == "response.incomplete"
    assert built.response["incomplete_details"] == {"reason": why}


def test_what_is_skipped_is_counted() -> None:
    story: list[AgentEvent] = [
        STARTED,
        TextDelta(text="a", message_id="m"),
        TextDelta(text="b", message_id="m"),
        FINISHED,
    ]
    whole, _ = told(story)
    rest, _ = told(story, skip=3)
    assert rest == whole[4:]


def test_one_that_waits_for_its_turn_says_so_after_it_was_created() -> None:
    built = new()
    events = read(built.begin(queued=True) + built.started() + built.started() + built.finish("stop", None, NOW))
    assert types(events) == ["created", "queued", "in_progress", "completed"]
    assert [event["response"]["status"] for event in events] == ["queued", "queued", "in_progress", "completed"]


def test_when_it_was_made_is_in_its_id() -> None:
    before = int(datetime.now(UTC).timestamp())
    made = ResponseStream(str(uuid7()), ECHO).response["created_at"]
    assert before <= made <= int(datetime.now(UTC).timestamp())


def test_the_order_of_the_start_is_kept_by_those_who_only_start() -> None:
    events, _ = told([RunStarted(agent="simple", model="m")])
    assert types(events) == ["created", "in_progress"]
