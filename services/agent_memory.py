"""What a background run knows of itself when it goes on: from its events and its checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.types import Command, StateSnapshot

from domain.events import (
    Envelope,
    EventLaws,
    RunResumed,
    RunWaiting,
    TextDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
)
from domain.runs import Run


@dataclass(slots=True)
class Past:
    """What a run that goes on has behind it.

    Attributes:
        reason: why it goes on.
        attempt: which one this is.
        last_seq: of what it has told; `laws` have heard all of it.
        cut: ids of messages that had begun and are said anew.
        dropped: calls of tools that had begun and are called anew, under other ids.
        brought: messages that earlier attempts have made, and that are not in the record.
        seen: ids of all that the graph remembers.
        rest: what is left to tell of messages that were made, and told in part, by their ids.
        untold: messages that were made, and of which nothing was told.
        unpaid: messages whose model call is in no event, and so in no account.
        calls: model calls that earlier attempts have paid for.
        output: of the last answer.
    """

    reason: Literal["approval", "crash", "retry", "drain"]
    attempt: int
    last_seq: int
    laws: EventLaws
    cut: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    brought: list[BaseMessage] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    rest: dict[str, str] = field(default_factory=dict)
    untold: list[BaseMessage] = field(default_factory=list)
    unpaid: list[AIMessage] = field(default_factory=list)
    calls: list[UsageReported] = field(default_factory=list)
    output: str = ""


def past_of(run: Run, told: list[Envelope]) -> Past:
    """What a run has behind it, by its events; `recall` completes it."""
    laws = EventLaws()
    for envelope in told:
        laws.admit(envelope.event)
    calls = [envelope.event for envelope in told if isinstance(envelope.event, UsageReported)]
    resumed = [envelope.event for envelope in told if isinstance(envelope.event, RunResumed)]
    reason: Literal["approval", "crash", "retry", "drain"] = "crash" if run.crashes else "drain"
    if told and isinstance(told[-1].event, RunWaiting):
        reason = "approval"
    elif run.retries > sum(one.reason == "retry" for one in resumed):
        reason = "retry"
    return Past(reason, run.attempt, told[-1].seq if told else 0, laws, calls=calls)


def all_texts(told: list[Envelope]) -> list[str]:
    """Ids of every message that was begun, in order."""
    return list(dict.fromkeys(one.event.message_id for one in told if isinstance(one.event, TextDelta)))


def recall(
    past: Past,
    told: list[Envelope],
    snapshot: StateSnapshot,
    known: set[str | None],
    asked: set[str | None],
    answers: Mapping[str, Any],
) -> Command[Any] | None:
    """Complete `past` from the checkpoint, and say what the graph is to be given to go on.

    Args:
        known: ids of the messages of the session that are in the record.
        asked: ids of those that this run was asked, or has written already: what an earlier run left in the checkpoint
            is before them.
        answers: of humans, by the id of the interrupt.
    """
    kept: list[BaseMessage] = [
        message for message in snapshot.values.get("messages", ()) if isinstance(message, BaseMessage)
    ]
    begins = next((place for place, message in enumerate(kept) if message.id in asked), None)
    own = [message for message in kept if message.id not in known] if begins is None else kept[begins:]
    past.brought = [message for message in own if message.id not in known]
    ids = {message.id for message in kept}
    past.seen = {message.id for message in kept if message.id is not None}
    past.cut = [message_id for message_id in all_texts(told) if message_id not in ids]
    own = [message for message in own if isinstance(message, AIMessage | ToolMessage)]
    _find_untold(past, told, own)
    asked = {call["id"] for message in kept if isinstance(message, AIMessage) for call in message.tool_calls}
    past.dropped = [call_id for call_id in past.laws.open_tools if call_id not in asked]  # who was answered is told so
    last = next((message for message in reversed(own) if isinstance(message, AIMessage)), None)
    past.output = "" if last is None else str(last.text)
    decided = {one.id: answers[one.id] for one in snapshot.interrupts if one.id in answers}
    return Command(resume=decided) if decided else None


def _find_untold(past: Past, told: list[Envelope], own: list[BaseMessage]) -> None:
    """What the checkpoint has and the events have not: a process died between the two.

    Args:
        own: messages that this run has made.
    """
    texts: dict[str, str] = {}
    for one in told:
        if isinstance(one.event, TextDelta):
            texts[one.event.message_id] = texts.get(one.event.message_id, "") + one.event.text
    started = {one.event.call_id for one in told if isinstance(one.event, ToolStarted)}
    finished = {one.event.call_id for one in told if isinstance(one.event, ToolFinished)}
    answers = [message for message in own if isinstance(message, AIMessage)]
    unpaid = len(answers) - len(past.calls)
    for message in own:
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in finished:
                past.untold.append(message)
            continue
        if not isinstance(message, AIMessage) or message.id is None:
            continue
        text, part = str(message.text), texts.get(message.id)
        if part is not None and message.id in past.laws.open_texts and text.startswith(part):
            past.rest[message.id] = text[len(part) :]
        elif part is not None or started & {call["id"] for call in message.tool_calls}:
            continue
        else:
            past.untold.append(message)
        ours = "routeur_model" in message.response_metadata  # of others the message itself will be read
        if unpaid > 0 and message.usage_metadata and (ours or message not in past.untold):
            past.unpaid.append(message)
            unpaid -= 1
