"""The laws of the event stream, checked over every sequence that hypothesis can think of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from domain.enums import FinishReason
from domain.events import (
    AgentEvent,
    EventLaws,
    ReasoningDelta,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
    RunTimedOut,
    StateUpdated,
    TextDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
)

STARTED = RunStarted(agent="simple", model="offline/rules")
IDS = st.sampled_from(["a", "b", "c"])
MIDDLE = st.one_of(
    st.builds(TextDelta, text=st.text(max_size=5), message_id=IDS, done=st.booleans()),
    st.builds(ReasoningDelta, text=st.text(max_size=5), message_id=IDS),
    st.builds(ToolStarted, call_id=IDS, name=st.just("clock")),
    st.builds(ToolFinished, call_id=IDS, name=st.just("clock"), output=st.text(max_size=5)),
    st.builds(StateUpdated, data=st.integers()),
    st.builds(UsageReported, model=st.just("m"), usage=st.none()),
)
FINISH = st.sampled_from(FinishReason)
TERMINAL = st.one_of(
    st.builds(RunFinished, output=st.text(max_size=5), model=st.just("m"), finish_reason=FINISH, usage=st.none()),
    st.builds(RunFailed, error=st.just("internal"), code=st.just("x"), message=st.just("y")),
    st.builds(RunCancelled, reason=st.just("z")),
    st.builds(RunTimedOut, limit=st.just(1.0), message=st.just("late")),
)  # fmt: skip


def admitted(laws: EventLaws, events: list[AgentEvent]) -> list[AgentEvent]:
    """Those of `events` that the laws let through."""
    through = []
    for event in events:
        try:
            laws.admit(event)
        except ValueError:
            continue
        through.append(event)
    return through


@given(st.lists(st.one_of(st.just(STARTED), MIDDLE, TERMINAL), max_size=30), TERMINAL)
def test_whatever_is_written_the_laws_hold(events: list[AgentEvent], terminal: AgentEvent) -> None:
    laws = EventLaws()
    told = admitted(laws, [STARTED, *events])
    if not laws.ended:
        told += admitted(laws, [*laws.closings(), terminal])

    assert told[0] is STARTED
    assert sum(isinstance(event, RunStarted) for event in told) == 1
    assert [event.terminal for event in told] == [False] * (len(told) - 1) + [True]
    opened: set[tuple[str, str]] = set()
    for event in told:
        if isinstance(event, TextDelta):
            (opened.discard if event.done else opened.add)(("text", event.message_id))
        elif isinstance(event, ToolStarted):
            opened.add(("tool", event.call_id))
        elif isinstance(event, ToolFinished):
            opened.remove(("tool", event.call_id))
    assert not opened, "something was left open before the terminal event"


@given(TERMINAL)
def test_nothing_comes_before_the_start_or_after_the_end(terminal: AgentEvent) -> None:
    laws = EventLaws()
    with pytest.raises(ValueError, match=r"before run\.started"):
        laws.admit(terminal)
    laws.admit(STARTED)
    laws.admit(terminal)
    with pytest.raises(ValueError, match="after the terminal"):
        laws.admit(StateUpdated(data=1))


@given(st.one_of(MIDDLE, TERMINAL))
def test_every_event_survives_being_stored_as_json(event: AgentEvent) -> None:
    adapter: TypeAdapter[AgentEvent] = TypeAdapter(AgentEvent)
    assert adapter.validate_json(adapter.dump_json(event)) == event
