"""Who answers in a realtime session: an agent of ours, or a model itself. Both are runs of the stored session."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ValidationError
from uuid_utils import uuid7

from domain.auth import Principal
from domain.enums import FinishReason, Role
from domain.errors import InternalError, InvalidRequest, RouteurError
from domain.events import AgentEvent, RunCancelled, RunFinished, TextDelta
from domain.models import TunedCompletion
from domain.targets import Target
from services.agent_service import AgentService
from services.agent_stream import Paused, RunStream
from services.background_service import BackgroundService
from services.direct_answer import Block
from services.direct_service import DirectRequest, DirectRun, DirectService
from services.realtime.response import CallPiece, Piece, TextPiece
from services.realtime.waiting import Answer, Ended, House, WaitingRun
from services.wire_messages import WireMessage

CANCELLED = "Cancelled by the client."


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        messages: what the session does not know yet, with the ids that they get in the record.
        session_id: None: a run of its own, which no session remembers.
        without: ids of recorded messages that the client has deleted.
        more: parameters of chat completions (`tools`, `tool_choice`, ...).
    """

    messages: Sequence[WireMessage]
    ids: Sequence[str]
    session_id: str | None
    instructions: str = ""
    without: frozenset[str] = frozenset()
    max_tokens: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


class Answers:
    """Begins answers of one target for one caller."""

    def __init__(
        self,
        target: Target,
        caller: Principal,
        agents: AgentService,
        direct: DirectService,
        background: BackgroundService | None,
    ) -> None:
        self.target = target
        self._caller = caller
        self._agents = agents
        self._direct = direct
        self._background = background  # None: runs that wait cannot be kept here

    async def begin(self, question: Question) -> Answer:
        """An answer, written down, and nothing asked of a model yet.

        Raises:
            RouteurError: as `AgentService.stream` and `DirectService.begin`.
        """
        if self.target.agent is None:
            return await self._ask_model(question)
        return await self._ask_agent(question)

    async def _ask_model(self, question: Question) -> Answer:
        body: dict[str, Any] = {"model": self.target.model, "messages": list(question.messages), **question.more}
        if question.max_tokens is not None:
            body["max_completion_tokens"] = question.max_tokens
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        rules = ({"role": "system", "content": question.instructions},) if question.instructions else ()
        run = await self._direct.begin(
            DirectRequest(
                body,
                self.target.model or "",
                streamed=True,
                session_id=question.session_id,
                metadata=question.metadata,
                unheard=rules,
                new_ids=tuple(question.ids),
                without=question.without,
            ),
            self._caller,
        )
        return ModelAnswer(run)

    async def _ask_agent(self, question: Question) -> Answer:
        messages = [_for_agents(message) for message in question.messages]
        if question.instructions:
            messages.insert(0, {"role": Role.SYSTEM, "content": question.instructions})
        try:
            command = TunedCompletion.model_validate(
                {
                    "messages": messages,
                    "agent": self.target.agent,
                    "model": self.target.model,
                    "session_id": question.session_id,
                    "max_tokens": question.max_tokens,
                    "metadata": question.metadata,
                }
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise InvalidRequest(f"The agent cannot take that: {first['msg']}.", code="invalid_value") from None
        house = self._background if question.session_id is not None else None  # else nobody could answer it
        return AgentAnswer(await self._agents.stream(command, self._caller, over_to=house), house, self._caller)


class AgentAnswer:
    """An agent's run. Its own tool calls are its own: they are answered by the house and not told.

    Args:
        house: keeps it when it comes to wait for a human.
    """

    def __init__(self, run: RunStream, house: House | None, caller: Principal) -> None:
        self.ended = Ended()
        self._run = run
        self._house = house
        self._caller = caller
        self._cancelled = False

    @property
    def run_id(self) -> str:
        """Of the run in the record."""
        return str(self._run.run_id)

    def cancel(self, *, spoken_over: bool = False) -> None:
        """As `Answer.cancel`."""
        self._cancelled = True
        self._run.cancel(CANCELLED)

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        """As `Answer.pieces`."""
        async with aclosing(self._run.batches()) as batches:
            async for envelopes in batches:
                if self._cancelled:
                    self._run.cancel(CANCELLED)  # it could not be before it had begun
                pieces: list[Piece] = []
                for envelope in envelopes:
                    event = envelope.event
                    if isinstance(event, TextDelta):
                        ended = event.done and event.message_id not in self._run.cut
                        pieces.append(TextPiece(event.message_id, event.text, ended))
                    elif event.terminal:
                        self._note(event)
                if pieces:
                    yield pieces
        if self._run.paused is not None and self._house is not None:
            yield self._ask(self._run.paused, self._house)

    def _ask(self, paused: Paused, house: House) -> list[Piece]:
        run = self._run
        waiting = WaitingRun(house, self._caller, run.agent, run.run_id, run.story.last_seq, paused.approvals)
        self.ended.usage, self.ended.waiting = run.usage, waiting
        return [*waiting.asks(), waiting.question()]

    def _note(self, event: AgentEvent) -> None:
        ended = self.ended
        ended.usage = self._run.usage
        if isinstance(event, RunFinished):
            ended.finish = event.finish_reason
        elif isinstance(event, RunCancelled):
            ended.cancelled = True
        else:
            ended.error = self._run.error or InternalError()


class ModelAnswer:
    """A direct call. The model's function calls are the client's to run."""

    def __init__(self, run: DirectRun) -> None:
        self.ended = Ended()
        self._run = run
        self._cancelled = False

    @property
    def run_id(self) -> str:
        """Of the run in the record."""
        return str(self._run.run_id)

    def cancel(self, *, spoken_over: bool = False) -> None:
        """As `Answer.cancel`."""
        self._cancelled = True
        self._run.cancel(CANCELLED)

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        """As `Answer.pieces`."""
        run = self._run
        try:
            if self._cancelled:
                await run.aclose()
                self.ended.cancelled = True
                return
            await run.open()
            async with aclosing(run.blocks()) as blocks:
                async for block in blocks:
                    if pieces := self._pieces_of(block):
                        yield pieces
            self.ended.finish = FinishReason(run.answer.finish_reason or "stop")
        except RouteurError as error:
            self.ended.cancelled = error.code == "run_cancelled"
            self.ended.error = None if self.ended.cancelled else error
        finally:
            self.ended.usage = run.usage

    def _pieces_of(self, block: Block) -> list[Piece]:
        pieces: list[Piece] = []
        for event in block.events:
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                if text := delta.get("content"):
                    pieces.append(TextPiece(self._run.message_id, text))
                for part in delta.get("tool_calls") or ():
                    pieces.append(self._call(part))
        return pieces

    def _call(self, part: dict[str, Any]) -> CallPiece:
        call = self._run.answer.calls[part.get("index") or 0]
        call.id = call.id or f"call_{uuid7().hex}"  # so the record and the client know it by the same one
        return CallPiece(call.id, call.name or "", (part.get("function") or {}).get("arguments") or "")


def _for_agents(message: WireMessage) -> dict[str, Any]:
    """A message of chat completions in our own words."""
    calls = [
        {"id": call["id"], "name": call["function"]["name"], "arguments": _arguments(call["function"]["arguments"])}
        for call in message.get("tool_calls") or ()
    ]
    told: dict[str, Any] = {"role": Role(message["role"]), "content": message.get("content") or "", "tool_calls": calls}
    if "tool_call_id" in message:
        told["tool_call_id"] = message["tool_call_id"]
    return told


def _arguments(text: str) -> dict[str, Any]:
    try:
        read = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {"_raw": text}
    return read if isinstance(read, dict) else {"_raw": text}
