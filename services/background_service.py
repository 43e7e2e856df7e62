"""Background runs for their owners: submitted, looked at, cancelled, approved, sent again."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from uuid_utils import uuid7

from config.run_settings import RunSettings
from core.metrics import Metrics
from core.webhooks import WebhookGuard
from domain.auth import Principal
from domain.background import (
    AgentRunRequest,
    AgentStatus,
    Approval,
    ApprovalAnswer,
    EventBatch,
    HandOver,
    RunAccepted,
    RunParameters,
    RunState,
    Submission,
)
from domain.enums import Role, RunStatus
from domain.errors import Conflict, RateLimited, RouteurError, Unavailable
from domain.events import Envelope
from domain.messages import Message
from domain.ports import Also, RecordStore, RunBacklog, RunQueue, RunSignals, SignalKind
from domain.runs import ACTIVE, HOLDING, Run, RunFilter, RunInfo
from domain.sessions import RawMessage
from domain.text import one_line
from services.agent_messages import asked_again, question_of, to_json, to_langchain, to_record
from services.agent_registry import AgentRegistry
from services.agent_service import AgentService
from services.approval_forms import decided
from services.run_events import Gap, RunEvents
from services.run_worker import RunWorker
from services.session_service import run_not_found

_TITLE_CHARS = 80
_DEPTH_FOR = 1.0  # seconds for which the depth of the whole queue is taken to be what it was
_MEASURE_EVERY = 5.0  # seconds
_FULL_RETRY = 5.0  # seconds, for who finds it full


class BackgroundService:
    """The use cases of background runs. The owner is always the caller."""

    def __init__(
        self,
        store: RecordStore,
        backlog: RunBacklog,
        queue: RunQueue,
        agents: AgentService,
        registry: AgentRegistry,
        worker: RunWorker,
        events: RunEvents,
        signals: RunSignals,
        webhooks: WebhookGuard,
        metrics: Metrics,
        settings: RunSettings,
    ) -> None:
        self._store = store
        self._backlog = backlog
        self._queue = queue
        self._agents = agents
        self._registry = registry
        self._worker = worker
        self._events = events
        self._signals = signals
        self._webhooks = webhooks
        self._metrics = metrics
        self._settings = settings
        self._depth = (0.0, 0)
        signals.hear(self._heard)

    async def submit(
        self,
        agent_id: str,
        request: AgentRunRequest,
        caller: Principal,
        *,
        run_id: str | None = None,
        response: dict[str, Any] | None = None,
        instructions: str | None = None,
    ) -> RunAccepted:
        """Write a run down and answer at once; from then on it will be done, whatever happens to this process.

        Args:
            run_id: the id that it gets; when the caller has a run of that id, that one is meant.
            response: what the Responses API says of it again.
            instructions: put first in this run, and kept in no session.

        Raises:
            NotFound, AgentNotFound, ModelNotFound: no such thing here.
            Forbidden: the caller's key does not allow this agent or model.
            InvalidRequest: the webhook's address is not one we call.
            Conflict: the session is busy, and the caller would rather not wait.
            RateLimited: too many in the queue.
            Unavailable: the server is stopping, or the run cannot be written down.
        """
        known = await self.known(run_id, caller)
        if known is not None:
            return known
        new = await self.prepare(agent_id, request, caller, run_id=run_id, response=response, instructions=instructions)
        await self._queue.submit(new)
        return _accepted(new)

    async def submit_prepared(self, new: Submission, also: Also) -> bool:
        """Write a prepared run down together with something else, or neither."""
        return await self._queue.submit(new, also)

    async def submit_made(self, new: Submission) -> RunAccepted:
        """Write down a run that is not asked with messages. Raises as `submit`."""
        new.max_queued = self._settings.queued_per_user
        await self._queue.submit(new)
        return _accepted(new)

    async def check_room(self, webhook: str | None = None) -> None:
        """Whether a run may be written down now. No output.

        Raises:
            Unavailable: the server is stopping.
            RateLimited: too many in the queue.
            InvalidRequest: the webhook's address is not one we call.
        """
        if self._worker.draining:
            raise Unavailable("The server is stopping; try again.", code="draining", retry_after=2)
        await self._look_at_the_queue()
        if webhook is not None:
            self._webhooks.check(webhook)

    async def prepare(
        self,
        agent_id: str,
        request: AgentRunRequest,
        caller: Principal,
        *,
        run_id: str | None = None,
        again: Run | None = None,
        response: dict[str, Any] | None = None,
        instructions: str | None = None,
    ) -> Submission:
        """Everything that is checked before a run is written down. Raises as `submit`.

        Args:
            again: whose messages are asked once more, in place of the request's.
        """
        await self.check_room()
        resolved = await self._agents.resolve(agent_id, request.model, request.session_id, caller)
        if request.webhook is not None:
            self._webhooks.check(request.webhook)
        now = datetime.now(UTC)
        state = request.input if isinstance(request.input, dict) else None
        asked = to_langchain(_messages(request.input)) if again is None else asked_again(await self._asked(again))
        text = question_of(asked)
        kept = RunParameters(
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            response_format=request.response_format,
            state=state,
            asked=len(asked),
            response=response,
            instructions=instructions,
        )
        session = resolved.session
        return Submission(
            id=run_id or str(uuid7()),
            owner_id=caller.user_id,
            session_id=session.id if session else str(uuid7()),
            new_session=session is None,
            kind=resolved.kind,
            agent=resolved.agent.id,
            model=resolved.model,
            input=state if state is not None else text,
            messages=[to_record(message, now) for message in asked],
            metadata=dict(request.metadata),
            request=kept.model_dump(mode="json", exclude_none=True),
            title=one_line(text.strip(), _TITLE_CHARS),
            created_at=now,
            if_busy=request.if_busy,
            priority=request.priority,
            time_limit=self._agents.limit_of(resolved.agent, request.timeout),
            may_resume=resolved.agent.spec.background.resume,
            webhook=request.webhook,
            retry_of=again.id if again else None,
            max_queued=self._settings.queued_per_user,
        )

    async def cancel(self, run_id: str, caller: Principal) -> RunState:
        """Ask for a run's end. One that has ended stays as it is; its state says so.

        Raises:
            NotFound: the caller has no such run.
        """
        status = await self._backlog.cancel(run_id, caller.user_id)
        if status is RunStatus.CANCELLING and not self._worker.cancel(run_id):
            self._signals.tell("cancel", [run_id])
        elif status is RunStatus.CANCELLED:
            self._events.poke(run_id)
            await self._worker.on_over(run_id)
        return RunState(run_id=run_id, status=status)

    async def approve(self, run_id: str, answer: ApprovalAnswer, caller: Principal) -> RunState:
        """Answer what a run has asked, once; when nothing is left open it goes on.

        Raises:
            NotFound: the caller has no such run, or the run no such approval.
            Conflict: it has been answered, or the run does not wait any more.
        """
        run = await self._owned(run_id, caller)
        asked = {one.id: one for one in await self._backlog.approvals(run_id)}
        found = asked.get(answer.approval_id)
        approved = answer.decision == "approve"
        value = answer.value
        if value is None:
            payload = None if found is None else found.payload
            value = decided(payload, approved=approved, reason=answer.reason)
        status = await self._backlog.answer(
            run_id, caller.user_id, answer.approval_id, approved=approved, answer=value, by=caller.username
        )
        if status is RunStatus.QUEUED:
            await self._queue.wake(run_id, run.session_id, run.priority, datetime.now(UTC))
        return RunState(run_id=run_id, status=status)

    async def take_over(self, one: HandOver, batch: EventBatch) -> bool:
        """Keep a run that somebody waited for, and that waits for a human now (`agent_service.TakesOver`)."""
        return await self._backlog.hand_over(one, batch)

    async def going_on_in(self, session_id: str, caller: Principal) -> tuple[Run, list[Approval]] | None:
        """The caller's background run that has that session, and its open questions; None: none has."""
        wanted = RunFilter(caller.user_id, session_id=session_id, statuses=ACTIVE)
        async with self._store.reading() as work:
            found = [run for run in await work.runs.find_runs(wanted) if run.background]
        if not found:
            return None
        run = next((one for one in found if one.status in HOLDING), found[-1])
        asked = await self._backlog.approvals(run.id) if run.status is RunStatus.WAITING else []
        return run, [one for one in asked if one.status == "pending"]

    def follow(self, run_id: str, after: int, heartbeat: float) -> AsyncGenerator[list[Envelope] | Gap]:
        """What a run tells after that event; as `RunEvents.follow`."""
        return self._events.follow(run_id, after, heartbeat)

    async def requeue(self, run_id: str, caller: Principal, *, new_id: str | None = None) -> RunAccepted:
        """Send a dead letter again: a new run with the same question, in the same session.

        Args:
            new_id: as `run_id` of `submit`.

        Raises:
            NotFound: the caller has no such run.
            Conflict: it is no dead letter, or has been sent again; or its session is busy.
        """
        known = await self.known(new_id, caller)
        if known is not None:
            return known
        run = await self._owned(run_id, caller)
        if not run.dead:
            raise Conflict("Only a run that ended badly can be sent again, and only once.", code="not_a_dead_letter")
        kept = RunParameters.model_validate(run.request or {})
        request = AgentRunRequest(
            input=kept.state if kept.state is not None else "again",
            session_id=run.session_id,
            model=run.model,
            temperature=kept.temperature,
            max_tokens=kept.max_tokens,
            response_format=kept.response_format,
            metadata=run.metadata,
            timeout=run.time_limit,
            priority=run.priority,
            webhook=run.webhook,
        )
        new = await self.prepare(run.agent, request, caller, run_id=new_id, again=run)
        if not await self._queue.submit(new, lambda work: work.runs.mark_resent(run_id, caller.user_id)):
            raise Conflict("This dead letter has just been sent again.", code="not_a_dead_letter")
        return _accepted(new)

    async def status(self, agent_id: str, caller: Principal, run_id: str | None = None) -> AgentStatus:
        """What an agent is doing for the caller, or where one of its runs stands.

        Raises:
            AgentNotFound: there is no such agent.
            NotFound: the caller has no such run of that agent.
        """
        self._registry.info(agent_id)
        if run_id is not None:
            run = await self._owned(run_id, caller)
            if run.agent != agent_id:
                raise run_not_found()
            runs = [run]
        else:
            async with self._store.reading() as work:
                going = await work.runs.in_progress(caller.user_id, datetime.now(UTC))
            runs = [run for run in going if run.agent == agent_id]
        count = {status: sum(run.status is status for run in runs) for status in ACTIVE}
        idle = RunStatus.RUNNING if runs else "idle"
        return AgentStatus(
            agent=agent_id,
            status=runs[0].status if run_id is not None else idle,
            queued=count[RunStatus.QUEUED],
            running=count[RunStatus.RUNNING] + count[RunStatus.CANCELLING],
            waiting=count[RunStatus.WAITING],
            runs=[RunInfo.of(run) for run in runs],
        )

    async def standing(self, run_id: str) -> RunStatus | None:
        """Where anybody's run stands; None: there is no such run."""
        found = await self._backlog.standing(run_id)
        return None if found is None else found[0]

    async def measure(self) -> None:
        """Tell the metrics how deep the queue is, for ever: whoever scales workers wants to know."""
        while True:
            with suppress(RouteurError):
                self._metrics.queue_depth.set(await self._backlog.depth(self._settings.queued))
            await asyncio.sleep(_MEASURE_EVERY)

    def _heard(self, kind: SignalKind, run_id: str) -> None:
        if kind == "cancel":
            self._worker.cancel(run_id)

    async def _asked(self, run: Run) -> list[RawMessage]:
        """What a run was asked, as it stands in its session."""
        first, count = run.first_index or 0, RunParameters.model_validate(run.request or {}).asked
        async with self._store.reading() as work:
            return await work.raw_messages.find_by_session_id(run.session_id or "", after=first - 1, limit=count)

    async def known(self, run_id: str | None, caller: Principal) -> RunAccepted | None:
        """The caller's run of that id: a process that died wrote it down, and could not say so any more."""
        if run_id is None:
            return None
        async with self._store.reading() as work:
            run = await work.runs.owned(run_id, caller.user_id)
        if run is None:
            return None
        return RunAccepted(
            run_id=run.id,
            session_id=run.session_id or "",
            agent=run.agent,
            model=run.model or "",
            status=run.status,
            created_at=run.created_at,
            retry_of=run.retry_of,
        )

    async def _owned(self, run_id: str, caller: Principal) -> Run:
        async with self._store.reading() as work:
            run = await work.runs.owned(run_id, caller.user_id)
        if run is None:
            raise run_not_found()
        return run

    async def _look_at_the_queue(self) -> None:
        """Refuse what would wait for hours. The count is a second old at most; that of one owner is exact."""
        now = asyncio.get_running_loop().time()
        if now - self._depth[0] > _DEPTH_FOR or self._depth[0] == 0.0:
            self._depth = (now, await self._backlog.depth(self._settings.queued))
        if self._depth[1] >= self._settings.queued:
            raise RateLimited("The queue is full; try again later.", code="queue_full", retry_after=_FULL_RETRY)


def _accepted(new: Submission) -> RunAccepted:
    return RunAccepted(
        run_id=new.id,
        session_id=new.session_id,
        agent=new.agent,
        model=new.model,
        status=RunStatus.QUEUED,
        created_at=new.created_at,
        retry_of=new.retry_of,
    )


def _messages(given: Any) -> list[Message]:
    if isinstance(given, str):
        return [Message(role=Role.USER, content=given)]
    if isinstance(given, dict):
        return [Message(role=Role.USER, content=to_json(given))]
    return list(given)
