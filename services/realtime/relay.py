"""A realtime session with a provider's own realtime model: its events go both ways as they are, and are read only as
far as limits, the record and the house's secrets need it."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson
from uuid_utils import uuid7

from core.http import ProviderSocket
from domain.errors import InternalError, InvalidRequest, RouteurError, UpstreamFailure, UpstreamTimeout
from domain.events import UsageReported
from domain.text import clean_text
from services.realtime.conversation import Ending
from services.realtime.outbox import Outbox, event_id
from services.realtime.relay_book import RelayedRun, RelayTerms, Said, begin_run, is_sound, message_of, usage_of
from services.realtime.schemas import SessionParameters
from services.wire_messages import WireMessage, wire_text

logger = logging.getLogger(__name__)

Event = dict[str, Any]

_MOST_REPLAYED = 100  # messages of a stored session that the provider is told when it goes on
_MOST_REPLAYED_CHARS = 100_000
_TRANSCRIPT_SECONDS = 5.0  # after a response, for the transcript of what it answers
_MOST_IDS = 4_000  # of items, that are remembered
_PARTS = {"user": "input_text", "system": "input_text", "assistant": "output_text"}
_NOT_YOURS = ("prompt", "tracing")  # they are those of the house's account
_WORDS = frozenset({
    "response.output_text.delta", "response.output_audio_transcript.delta", "response.text.delta",
    "response.audio_transcript.delta",
})  # fmt: skip
_TRANSCRIPT = "conversation.item.input_audio_transcription."


class RelayConversation:
    """As `conversation.RealtimeConversation`; who answers is a provider, over `socket`."""

    def __init__(self, terms: RelayTerms, socket: ProviderSocket, outbox: Outbox) -> None:
        self.outbox = outbox
        self.ending: Ending | None = None
        self.heard_at = time.monotonic()
        self._terms = terms
        self._socket = socket
        self._said: dict[str, Said] = {}  # and in no run yet, by item
        self._awaited: dict[str, Said] = {}  # those whose transcript is still to come
        self._seen: deque[str] = deque(maxlen=_MOST_IDS)
        self._generated: deque[str] = deque(maxlen=_MOST_IDS)
        self._replayed: set[str] = set()
        self._spent: list[UsageReported] = []  # on transcripts, and in no run yet
        self._running: dict[str, RelayedRun] = {}
        self._held: RelayedRun | None = None
        self._holding: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._transcriber: str | None = None
        self._interrupts = True
        self._last: Ending | None = None

    @classmethod
    async def opened(
        cls,
        terms: RelayTerms,
        socket: ProviderSocket,
        outbox: Outbox,
        earlier: Sequence[WireMessage],
        given: Sequence[SessionParameters],
    ) -> "RelayConversation":
        """A session that is set up as `given` says, whose provider is told what was said in it before.

        Raises:
            RouteurError: the provider is gone again, or something that was given is not the caller's to set.
        """
        made = cls(terms, socket, outbox)
        for session in given:
            told = {**session.model_dump(exclude_unset=True, exclude={"model"}), "type": "realtime"}
            if len(told) > 1:
                await socket.send(_dumped({"type": "session.update", "session": told}))
        for message in _last_of(earlier):
            new_id = f"item_{uuid7().hex[:26]}"
            made._replayed.add(new_id)
            part = {"type": _PARTS[message["role"]], "text": wire_text(message)}
            item = {"id": new_id, "type": "message", "role": message["role"], "content": [part]}
            await socket.send(_dumped({"type": "conversation.item.create", "item": item}))
        return made

    @property
    def session_id(self) -> str:
        """Of the stored session."""
        return self._terms.session_id

    @property
    def answering(self) -> bool:
        """True while a response is being given."""
        return bool(self._running)

    @property
    def listens(self) -> bool:
        """The provider does."""
        return True

    @property
    def interrupts(self) -> bool:
        """True when somebody who begins to speak stops what is being said."""
        return self._interrupts

    def begin(self) -> None:
        """Let the provider greet the client."""
        self._reading = asyncio.create_task(self._relay(), name=f"relay {self.session_id}")

    async def hear(self, frame: str | bytes, *, steady: bool = False) -> None:
        """One frame of the client, handed on. Waits while the outbox is full, or the provider does not read."""
        if not steady:
            self.heard_at = time.monotonic()
        given: str | None = None
        try:
            event, text = _parsed(frame)
            told = event.get("event_id")
            given = told if isinstance(told, str) and len(told) <= 512 else None
            if self._checked(event):
                text = _dumped(event)
            if self.ending is None:
                await self._socket.send(text)
        except (UpstreamFailure, UpstreamTimeout) as error:
            self.end(Ending(1011, error.message), error)
        except RouteurError as error:
            self.refuse(error, given)
        await self.outbox.room()

    def refuse(self, error: RouteurError, event_id: str | None = None) -> None:
        """Tell the client what was not done."""
        self.outbox.put({"type": "error", "error": {**self._terms.describe(error), "event_id": event_id}})

    def end(self, ending: Ending, error: RouteurError | None = None) -> None:
        """As `RealtimeConversation.end`."""
        if self.ending is None:
            self.ending = ending
            if error is not None:
                self.refuse(error)
            self.outbox.close()

    def end_after_answer(self, ending: Ending) -> None:
        """End it when the responses in progress are told."""
        if self._running:
            self._last = ending
        else:
            self.end(ending)

    async def aclose(self) -> None:
        """Close the provider's socket, and write down what there is."""
        self.outbox.close()
        for task in (self._reading, self._holding, *self._tasks):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self._socket.aclose()
        with suppress(RouteurError):
            await self._finish_held()
        await self._finish_running(None)
        with suppress(RouteurError):
            await self._keep_rest()

    # -- what clients say --

    def _checked(self, event: Event) -> bool:
        """Whether an event was changed on its way.

        Raises:
            InvalidRequest: it asks for what is not the caller's to set.
            RateLimited: too many runs at once.
        """
        kind = event.get("type")
        if not isinstance(kind, str):
            raise InvalidRequest("Missing required parameter: 'type'.", code="missing_required_parameter", param="type")
        if kind == "response.create":
            self._terms.runs.check_room()
            _check_account(event.get("response"), "response")
        if kind not in ("session.update", "transcription_session.update"):
            return False
        session = event.get("session")
        _check_account(session, "session")
        if not isinstance(session, dict) or session.get("model") is None:
            return False
        name = self._terms.model.partition("/")[2]
        if session["model"] not in (self._terms.model, name):
            raise InvalidRequest(
                "The model of a session cannot be changed.", code="invalid_value", param="session.model"
            )
        session["model"] = name
        return True

    # -- what the provider says --

    async def _relay(self) -> None:
        failure: RouteurError = UpstreamFailure("The provider ended the session.", code="upstream_closed")
        try:
            while (text := await self._socket.receive()) is not None:
                event = self._read(text)
                told = await self._told(event, text)
                if told is not None:
                    self.outbox.put_text(told)
                if event.get("type") == "response.done" and self._last is not None and not self._running:
                    self.end(self._last)
                await self.outbox.room()
        except RouteurError as error:
            failure = error
        except Exception as error:
            logger.exception("a relayed session failed", extra={"session_id": self.session_id})
            failure = InternalError()
            failure.__cause__ = error
        await self._finish_running(failure)
        self.end(Ending(1011, failure.message), failure)

    def _read(self, text: str) -> Event:
        try:
            event = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise self._socket.client.unreadable("a frame that is not JSON") from error
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise self._socket.client.unreadable("a frame that is no event")
        return event

    async def _told(self, event: Event, text: str) -> str | None:
        """What the client is told of it; None: nothing."""
        match event["type"]:
            case "session.created" | "session.updated":
                return self._session(event)
            case "conversation.item.added" | "conversation.item.done" | "conversation.item.created":
                if _inside(event, "item").get("id") in self._replayed:
                    return None
                self._item(_inside(event, "item"))
            case "response.output_item.added":
                self._generated.append(str(_inside(event, "item").get("id")))
            case "response.created":
                await self._begun(_inside(event, "response"))
            case "response.done":
                return await self._done(event, text)
            case "error":
                return self._error(event, text)
            case kind if kind in _WORDS:
                run = self._running.get(str(event.get("response_id")))
                if run is not None and isinstance(event.get("delta"), str):
                    run.pieces.append(event["delta"])
            case kind if kind.startswith(_TRANSCRIPT):
                await self._transcribed(kind.removeprefix(_TRANSCRIPT), event)
        return text

    def _session(self, event: Event) -> str:
        """Told with the stored session's id, by which it can go on, and our name of the model."""
        session = _inside(event, "session")
        session.pop("client_secret", None)  # of the house's account
        heard = _inside(_inside(session, "audio"), "input")
        self._transcriber = _name_in(heard.get("transcription") or session.get("input_audio_transcription"))
        detection = heard.get("turn_detection")
        self._interrupts = not (isinstance(detection, dict) and detection.get("interrupt_response") is False)
        event["session"] = {**session, "id": self.session_id, "model": self._terms.model}
        return _dumped(event)

    def _item(self, item: Event) -> None:
        item_id = item.get("id")
        if not isinstance(item_id, str) or item_id in self._seen or item_id in self._generated:
            return
        message = message_of(item)
        if message is None and not (is_sound(item) and self._transcriber is not None):
            return
        self._seen.append(item_id)
        said = self._said[item_id] = Said(item_id, message)
        if message is None:
            self._awaited[item_id] = said

    async def _transcribed(self, how: str, event: Event) -> None:
        if how not in ("completed", "failed"):
            return
        if how == "completed" and event.get("usage") is not None:
            model = f"{self._terms.model.partition('/')[0]}/{self._transcriber or 'transcription'}"
            self._spent.append(UsageReported(model=model, usage=usage_of(event["usage"])))
        said = self._awaited.pop(str(event.get("item_id")), None)
        if said is None:
            return
        transcript = event.get("transcript")
        words = transcript.strip() if how == "completed" and isinstance(transcript, str) else ""
        said.message = {"role": "user", "content": clean_text(words)}
        if self._held is not None and not self._held.waits:
            await self._finish_held()

    async def _begun(self, response: Event) -> None:
        """Raises:
        RouteurError: it cannot be written down, and so must not be given.
        """
        await self._finish_held()
        response_id = str(response.get("id"))
        alone = "conversation_id" in response and response["conversation_id"] is None
        known: list[WireMessage] = []
        late: list[Said] = []
        if not alone:
            for said in self._said.values():
                if said.message is None or late:
                    late.append(said)
                elif said.kept:
                    known.append(said.message)
            self._said.clear()
        try:
            run = await begin_run(self._terms, known, alone=alone, stop=lambda: self._stop(response_id))
        except RouteurError:
            self._stop(response_id)
            raise
        run.late = late
        self._running[response_id] = run

    def _stop(self, response_id: str) -> None:
        event = _dumped({"type": "response.cancel", "response_id": response_id})
        task = asyncio.create_task(_quietly(self._socket, event), name="cancel relayed response")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _done(self, event: Event, text: str) -> str:
        response = _inside(event, "response")
        run = self._running.pop(str(response.get("id")), None)
        if run is not None:
            run.response = response
            if run.waits:
                self._held = run
                self._holding = asyncio.create_task(self._hold(run), name="waiting for a transcript")
            else:
                await self._finish(run)
        details = _inside(response, "status_details")
        hidden = self._hidden(details.get("error"))
        if hidden is None:
            return text
        told = self._terms.describe(hidden)
        details["error"] = {name: told[name] for name in ("type", "code", "message")}
        return _dumped(event)

    def _error(self, event: Event, text: str) -> str:
        """The provider's own words, unless they are about the house's account."""
        error = event.get("error")
        hidden = self._hidden(error)
        if hidden is None:
            return text
        given = error.get("event_id") if isinstance(error, dict) else None
        told = {"type": "error", "error": {**self._terms.describe(hidden), "event_id": given}}
        return _dumped({"event_id": event_id(), **told})

    def _hidden(self, error: object) -> RouteurError | None:
        if not isinstance(error, dict):
            return None
        said = str(error.get("message") or "")
        client = self._socket.client
        for code in (str(error.get("code") or ""), str(error.get("type") or "")):
            if client.is_about_us(code, said):
                return client.refused_us(code, said)
        return None

    # -- written down --

    async def _hold(self, run: RelayedRun) -> None:
        await asyncio.sleep(_TRANSCRIPT_SECONDS)
        if self._held is run:
            self._held = None
            with suppress(RouteurError):
                await self._finish(run)

    async def _finish_held(self) -> None:
        run, self._held = self._held, None
        if run is not None:
            await self._finish(run)

    async def _finish_running(self, cut: RouteurError | None) -> None:
        runs, self._running = list(self._running.values()), {}
        for run in runs:
            try:
                await self._finish(run, cut)
            except RouteurError:
                logger.warning("a relayed run could not be written down", extra={"run_id": run.run_id})

    async def _finish(self, run: RelayedRun, cut: RouteurError | None = None) -> None:
        if not run.alone:
            run.calls, self._spent = [*self._spent, *run.calls], []
        # Nobody waits for these any more: whatever comes of them is told to the next run.
        self._said = {said.item_id: said for said in run.late if said.message is None} | self._said
        await asyncio.shield(asyncio.ensure_future(run.finish(cut)))

    async def _keep_rest(self) -> None:
        """What was said, or spent, and never answered."""
        said = [one.message for one in self._said.values() if one.message is not None and one.kept]
        self._said.clear()
        if not said and not self._spent:
            return
        run = await begin_run(self._terms, said, alone=False, stop=lambda: None)
        run.answered_nothing = True
        await self._finish(run)


async def _quietly(socket: ProviderSocket, text: str) -> None:
    with suppress(RouteurError):
        await socket.send(text)


def _parsed(frame: str | bytes) -> tuple[Event, str]:
    if isinstance(frame, bytes):
        raise InvalidRequest("Events are text frames that hold JSON.", code="invalid_json")
    try:
        event = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("The event is not valid JSON.", code="invalid_json") from error
    if not isinstance(event, dict):
        raise InvalidRequest("An event is a JSON object.", code="invalid_json")
    return event, frame


def _check_account(given: object, where: str) -> None:
    for name in _NOT_YOURS:
        if isinstance(given, dict) and given.get(name) is not None:
            raise InvalidRequest(
                f"'{name}' is not supported here.", code="unsupported_parameter", param=f"{where}.{name}"
            )


def _last_of(messages: Sequence[WireMessage]) -> list[WireMessage]:
    """The words that were said last, as many as a provider is told."""
    found: list[WireMessage] = []
    size = 0
    for message in reversed(messages):
        size += len(wire_text(message))
        if len(found) == _MOST_REPLAYED or size > _MOST_REPLAYED_CHARS:
            break
        if message["role"] in _PARTS and wire_text(message):
            found.append(message)
    return found[::-1]


def _inside(event: Event, name: str) -> Event:
    value = event.get(name)
    return value if isinstance(value, dict) else {}


def _name_in(given: object) -> str | None:
    """The name of the model that transcribes; None: nothing does."""
    if not isinstance(given, dict):
        return None
    name = given.get("model")
    return name if isinstance(name, str) and name else "transcription"


def _dumped(event: Event) -> str:
    return orjson.dumps(event).decode()
