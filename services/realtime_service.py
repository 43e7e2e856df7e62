"""Realtime sessions of one process: opened for their owners, counted, watched, ended. What is said in one is
`realtime/conversation.py`."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from uuid_utils import uuid7

from config.realtime_settings import RealtimeSettings
from config.routing_settings import POOL
from core.database.engine import Database
from core.metrics import Metrics
from core.security import SecretClaims
from domain.auth import Principal, Scope
from domain.background import AskedApproval
from domain.errors import Forbidden, InvalidRequest, RateLimited, RouteurError, Unauthenticated, Unavailable
from domain.sessions import NewSession
from domain.targets import target_of
from services.agent_messages import from_records
from services.agent_registry import AgentRegistry
from services.agent_service import AgentService, Resolved
from services.auth_service import AuthService
from services.background_service import BackgroundService
from services.client_secret_service import ClientSecretService
from services.direct_service import AGENT as DIRECT
from services.direct_service import DirectService
from services.llm_providers.base import BaseProvider
from services.realtime.answers import Answers
from services.realtime.conversation import Conversation, Ending, RealtimeConversation
from services.realtime.line import Terms
from services.realtime.outbox import Outbox
from services.realtime.relay import RelayConversation
from services.realtime.relay_book import RelayTerms
from services.realtime.schemas import SessionParameters, TranscriptionParameters, checked
from services.realtime.seams import VoiceSeams
from services.realtime.session_config import SessionConfig
from services.realtime.waiting import WaitingRun
from services.run_recorder import RunRecorder
from services.session_service import SessionService
from services.wire_messages import WireMessage, to_wire

logger = logging.getLogger(__name__)

_TICK = 1.0  # seconds between looks at open sessions: how long a revoked credential may still talk
_EXPIRED = "session_expired"
_REALTIME = "realtime"  # in the names of models that speak the protocol themselves

SHUTDOWN = Ending(1012, "The server is restarting.")


@dataclass(frozen=True, slots=True)
class Ticket:
    """A caller who may open a session, and until when. `secret`: they came with a client secret, and it said so."""

    caller: Principal
    credential: str
    expires_at: float
    secret: SecretClaims | None = None

    @property
    def transcribes(self) -> bool:
        """True when the secret is for sessions in which nobody answers."""
        return self.secret is not None and self.secret.session.get("type") == "transcription"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The session that is wanted: `model` as in the address, the stored one that is to go on, and how it is set up.

    `transcribes`: nobody answers in it, and nothing of it is stored.
    """

    model: str | None = None
    session_id: str | None = None
    session: SessionParameters | None = None
    transcribes: bool = False


@dataclass(slots=True, eq=False)
class _Open:
    conversation: Conversation
    ticket: Ticket
    begun: float
    epoch: int


class RealtimeService:
    """Opens sessions with `session`; `watch` ends those whose time or credential is over."""

    def __init__(
        self,
        settings: RealtimeSettings,
        database: Database,
        metrics: Metrics,
        *,
        auth: AuthService,
        secrets: ClientSecretService,
        agents: AgentService,
        direct: DirectService,
        sessions: SessionService,
        registry: AgentRegistry,
        recorder: RunRecorder,
        background: BackgroundService | None,
        voice: VoiceSeams | None = None,
    ) -> None:
        self.settings = settings
        self.secrets = secrets
        self.voice = voice or VoiceSeams()
        self._database = database
        self._metrics = metrics
        self._auth = auth
        self._agents = agents
        self._direct = direct
        self._sessions = sessions
        self._registry = registry
        self._recorder = recorder
        self._background = background
        self._open: set[_Open] = set()
        self._of_user: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Open sessions."""
        return self._of_user.total()

    async def admit(self, credential: str) -> Ticket:
        """Who calls: with a token, a key, or a client secret.

        Raises:
            Unauthenticated: the credential is not good.
            Forbidden: realtime is not among its scopes.
        """
        if self.secrets.is_one(credential):
            opened = await self.secrets.open(credential)
            ticket = Ticket(opened.caller, credential, float("inf"), opened.claims)
        else:
            caller, expires_at = await self._auth.admit(credential)
            ticket = Ticket(caller, credential, expires_at)
        _check_scope(ticket.caller)
        return ticket

    async def check(self, session: SessionParameters | TranscriptionParameters, caller: Principal) -> dict[str, Any]:
        """How a session set up like that would look; its id is for show.

        Raises:
            RouteurError: as `session`.
        """
        if isinstance(session, TranscriptionParameters):
            return self._ears_only("sess_new", session).shown()
        model = session.model or self._default_model()
        target = target_of(model)
        resolved = await self._agents.resolve(target.agent or DIRECT, target.model, None, caller)
        if target.agent is None and self._relayed(resolved.model) is not None:  # what it can do, its provider says
            set_up = session.model_dump(exclude_unset=True)
            return {**set_up, "type": "realtime", "object": "realtime.session", "id": "sess_new", "model": model}
        config = SessionConfig("sess_new", model, target, self.voice)
        config.update(session)
        return config.shown()

    @asynccontextmanager
    async def session(
        self, wanted: Wanted, ticket: Ticket, describe: Callable[[RouteurError], dict[str, Any]]
    ) -> AsyncIterator[Conversation]:
        """A conversation, until the context ends; whatever goes on in it then is stopped and kept.

        Args:
            describe: a failure in the words of OpenAI's clients.

        Raises:
            RateLimited: too many sessions.
            NotFound: no such model, agent, or session of the caller's.
            Forbidden: the caller's key does not allow the model or agent.
            InvalidRequest: the client secret is for another model.
        """
        caller = ticket.caller
        self._check_room(caller)
        self._of_user[caller.user_id] += 1
        self._metrics.realtime_open.inc()
        opened: _Open | None = None
        try:
            epoch = await self._database.auth_epoch()
            conversation = await self._conversation(wanted, ticket, describe)
            opened = _Open(conversation, ticket, time.monotonic(), epoch)
            self._open.add(opened)
            try:
                yield conversation
            finally:
                await conversation.aclose()
        finally:
            if opened is not None:
                self._open.discard(opened)
            self._metrics.realtime_open.dec()
            self._of_user[caller.user_id] -= 1
            if not self._of_user[caller.user_id]:
                del self._of_user[caller.user_id]

    async def watch(self) -> None:
        """End sessions that are over, for ever; a failure is logged and tried again."""
        while True:
            await asyncio.sleep(_TICK)
            try:
                await self.look()
            except RouteurError:
                logger.warning("open sessions could not be looked at", exc_info=True)

    async def look(self) -> None:
        """End the sessions whose time or credential is over."""
        if not self._open:
            return
        epoch = await self._database.auth_epoch()
        now, wall = time.monotonic(), time.time()
        for opened in list(self._open):
            if opened.conversation.ending is None:
                self._look_at_clock(opened, now, wall)
            if opened.epoch != epoch:
                await self._look_at_credential(opened)
                opened.epoch = epoch

    def _look_at_clock(self, opened: _Open, now: float, wall: float) -> None:
        conversation = opened.conversation
        if wall >= opened.ticket.expires_at:
            conversation.end(*_gone("The credential of this session has expired."))
        elif now - opened.begun >= self.settings.total_seconds:
            words = f"A session lasts at most {self.settings.total_seconds:g} s."
            conversation.end(Ending(1001, words), Unavailable(words, code=_EXPIRED))
        elif not conversation.answering and now - conversation.heard_at >= self.settings.idle_seconds:
            words = f"Nothing was said for {self.settings.idle_seconds:g} s."
            conversation.end(Ending(1001, words), Unavailable(words, code=_EXPIRED))

    async def _look_at_credential(self, opened: _Open) -> None:
        ticket = opened.ticket
        try:
            if ticket.secret is not None:
                caller = await self.secrets.caller_of(ticket.secret)
            else:
                caller = await self._auth.authenticate(ticket.credential)
            _check_scope(caller)
        except Unauthenticated:
            opened.conversation.end(*_gone("The credential of this session is not valid any more."))
        except Forbidden as error:
            opened.conversation.end(Ending(4403, error.message), error)

    async def _conversation(
        self, wanted: Wanted, ticket: Ticket, describe: Callable[[RouteurError], dict[str, Any]]
    ) -> Conversation:
        caller = ticket.caller
        if wanted.transcribes or ticket.transcribes:
            return self._transcribing(wanted, ticket, describe)
        model, given = await self._model_of(wanted, ticket)
        target = target_of(model)
        resolved = await self._agents.resolve(target.agent or DIRECT, target.model, wanted.session_id, caller)
        if target.agent is None and (provider := self._relayed(resolved.model)) is not None:
            return await self._relay(provider, resolved, wanted, given, caller, describe)
        calls: set[str] | None = None
        session_id = wanted.session_id
        if session_id is None:
            session_id = (await self._sessions.create(NewSession(agent=resolved.agent.id), caller)).session_id
        else:
            calls = {call["id"] for one in await self._history(session_id) for call in one.get("tool_calls") or ()}

        async def history() -> Sequence[WireMessage]:
            return await self._history(session_id)

        config = SessionConfig(session_id, model, target, self.voice)
        for one in given:
            config.update(one)
        config.expires(min(time.time() + self.settings.total_seconds, ticket.expires_at))
        answers = Answers(target, caller, self._agents, self._direct, self._background)

        async def cut(message_id: str, text: str) -> None:
            await self._sessions.cut_message(session_id, message_id, text, caller)

        terms = Terms(caller, answers, history, describe, self.voice, cut)
        waiting = (
            None if calls is None or target.agent is None else await self._waiting(session_id, target.agent, caller)
        )
        return RealtimeConversation(config, terms, Outbox(self.settings.outbox_kb * 1_000), calls, waiting)

    async def _waiting(self, session_id: str, agent: str, caller: Principal) -> WaitingRun | None:
        """A background run of the session, from whatever door it came: it waits for somebody's word, or is at work."""
        found = None if self._background is None else await self._background.going_on_in(session_id, caller)
        if self._background is None or found is None or found[0].agent != agent:
            return None
        run, asked = found
        questions = [AskedApproval(one.id, one.payload) for one in asked]
        return WaitingRun(self._background, caller, run.agent, run.id, run.last_seq, questions)

    def _transcribing(
        self, wanted: Wanted, ticket: Ticket, describe: Callable[[RouteurError], dict[str, Any]]
    ) -> RealtimeConversation:
        """A conversation in which nobody answers."""
        given = None
        if ticket.secret is not None:
            if not ticket.transcribes:
                raise InvalidRequest(
                    "The client secret is for a session that talks.", code="invalid_value", param="intent"
                )
            if wanted != Wanted(transcribes=wanted.transcribes):
                raise InvalidRequest(
                    "The client secret is for a session that only transcribes: name no model and no session.",
                    code="invalid_value",
                    param="model",
                )
            given = checked(TranscriptionParameters, ticket.secret.session)
        config = self._ears_only(f"sess_{uuid7().hex}", given)
        config.expires(min(time.time() + self.settings.total_seconds, ticket.expires_at))

        async def history() -> Sequence[WireMessage]:
            return []

        answers = Answers(target_of(self._default_model()), ticket.caller, self._agents, self._direct, None)
        terms = Terms(ticket.caller, answers, history, describe, self.voice)
        return RealtimeConversation(config, terms, Outbox(self.settings.outbox_kb * 1_000))

    def _ears_only(self, session_id: str, given: TranscriptionParameters | None) -> SessionConfig:
        target = target_of(self._default_model())
        config = SessionConfig(session_id, "", target, self.voice, transcribes=True)
        if given is not None:
            config.update_transcription(given)
        return config

    async def _model_of(self, wanted: Wanted, ticket: Ticket) -> tuple[str, list[SessionParameters]]:
        """Who is to answer, and how the session is set up: as the client secret says, then as the caller does."""
        given = []
        model = wanted.model
        if ticket.secret is not None:
            secret = checked(SessionParameters, ticket.secret.session)
            given.append(secret)
            if model is not None and model != secret.model:
                raise InvalidRequest("The client secret is for another model.", code="invalid_value", param="model")
            model = secret.model or self._default_model()
        if wanted.session is not None:
            given.append(wanted.session)
            if wanted.session.model is not None and model not in (None, wanted.session.model):
                raise InvalidRequest("Two models are named.", code="invalid_value", param="session.model")
            model = model or wanted.session.model
        if model is None and wanted.session_id is not None:
            session = await self._sessions.get_session(wanted.session_id, ticket.caller)
            model = session.model if session.agent == DIRECT else f"agent/{session.agent}"
        return model or self._default_model(), given

    def _relayed(self, model: str) -> BaseProvider | None:
        """The provider of a model that speaks the protocol itself; None: we speak for it."""
        if model.startswith(f"{POOL}/"):
            return None
        provider, name = self._direct.llm.provider_of(model)
        speaks = _REALTIME in name.lower() or model in self.settings.relay_models
        return provider if speaks and provider.realtime_path is not None else None

    async def _relay(
        self,
        provider: BaseProvider,
        resolved: Resolved,
        wanted: Wanted,
        given: Sequence[SessionParameters],
        caller: Principal,
        describe: Callable[[RouteurError], dict[str, Any]],
    ) -> RelayConversation:
        """A session whose provider has accepted it; then only is it stored."""
        socket = await provider.realtime(resolved.model.partition("/")[2])
        try:
            session_id, earlier = wanted.session_id, []
            if session_id is None:
                session_id = (await self._sessions.create(NewSession(agent=resolved.agent.id), caller)).session_id
            else:
                earlier = await self._history(session_id)
            terms = RelayTerms(caller, resolved.model, session_id, self._recorder, self._direct.runs, describe)
            outbox = Outbox(self.settings.outbox_kb * 1_000)
            return await RelayConversation.opened(terms, socket, outbox, earlier, given)
        except BaseException:
            await socket.aclose()
            raise

    async def _history(self, session_id: str) -> list[WireMessage]:
        """What the stored session holds, as messages of chat completions with their ids."""
        known = from_records(await self._agents.stored(session_id, -1))
        return [{**message, "id": one.id} for one, message in zip(known, to_wire(known), strict=True)]

    def _default_model(self) -> str:
        return f"agent/{self._registry.default_agent}"

    def _check_room(self, caller: Principal) -> None:
        if self.count >= self.settings.sessions:
            raise RateLimited("Too many realtime sessions at once; try again in a moment.", retry_after=5)
        if self._of_user[caller.user_id] >= self.settings.per_user:
            raise RateLimited(
                f"You have {self.settings.per_user} realtime sessions open; close one.",
                code="too_many_sessions",
                retry_after=5,
            )


def _check_scope(caller: Principal) -> None:
    if not caller.may(Scope.REALTIME):
        raise Forbidden(f"The scope '{Scope.REALTIME.value}' is needed.", code="missing_scope")


def _gone(words: str) -> tuple[Ending, RouteurError]:
    return Ending(4401, words), Unauthenticated(words, code=_EXPIRED)
