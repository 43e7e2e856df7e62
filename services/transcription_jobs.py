"""Long transcriptions: background runs of the agent `transcription`, which goes on at the last parts that are done.

The upload lies in DATA_DIR/uploads/<run id> until the run has ended: who shares the work must share that folder.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from uuid_utils import uuid7

from config.settings import Settings
from core.audio.spool import RUN_FOLDER, UPLOAD, Spool, remove_folder
from domain.agents import AgentSpec, BackgroundSpec, MemorySpec
from domain.audio import (
    SAMPLE_RATE,
    AudioInfo,
    AudioSpan,
    AudioUpload,
    DecodedAudio,
    SpanTranscript,
    Transcript,
    TranscriptFormat,
    TranscriptionOptions,
    TranscriptionPlan,
)
from domain.auth import Principal
from domain.background import RunAccepted, RunParameters, Submission
from domain.enums import RunStatus, SessionKind
from domain.errors import Conflict, InvalidRequest, NotFound, RouteurError, Unavailable
from domain.ports import RecordStore
from domain.runs import ACTIVE, Run
from domain.text import one_line
from domain.usage import Usage
from graphs.builder import AgentGraph, GraphContext
from graphs.transcription import Answer, Plan, build_transcription_graph
from services.agent_messages import new_message_id, to_json
from services.agent_registry import AgentRegistry
from services.agent_stream import RunStream
from services.background import Background
from services.model_stream import current_listener
from services.session_service import require_session, run_not_found
from services.transcription_run import AGENT, MAY_HAVE_COST
from services.transcription_service import TranscriptionService
from services.wire_messages import wire_record

logger = logging.getLogger(__name__)

_SOUND = "sound.pcm"
_KEPT = "transcript"  # in the metadata of the answer: what its text does not tell
_TITLE_CHARS = 80
_YOUNG = 60.0  # seconds for which a folder may wait for its run to be written down
_SWEEP_EVERY = 600.0
_STEPS = 100_000  # more than a day has parts of two seconds
_RETRIES = 3
_MOST_TOLD = 200_000  # bytes of segments in one event
_BRIEF = {"start", "end", "text"}


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A file that is to be transcribed while nobody waits. `response_format`: in which it will be wanted."""

    upload: AudioUpload
    options: TranscriptionOptions
    response_format: TranscriptFormat = TranscriptFormat.JSON
    session_id: str | None = None
    webhook: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of a run."""

    run_id: str
    session_id: str
    transcript: Transcript
    response_format: TranscriptFormat
    words: bool


class TranscriptionJobs:
    """Transcriptions in the background for their owners, and the steps of their graph (`transcription.Steps`)."""

    def __init__(
        self, transcription: TranscriptionService, store: RecordStore, background: Background | None, settings: Settings
    ) -> None:
        self._transcription = transcription
        self._store = store
        self._background = background
        self._settings = settings.transcription
        self._uploads = settings.storage.data_dir / "uploads"

    def install(self, registry: AgentRegistry) -> None:
        """Make the agent known, and see that uploads go when their runs do."""
        spec = AgentSpec(
            name="Transcription",
            description="Writes down what is said in a long recording.",
            memory=MemorySpec(kind="none"),
            background=BackgroundSpec(durability="sync", retries=_RETRIES),
        )
        # The bound that config files have is for graphs that may never end; this one does.
        spec = spec.model_copy(update={"recursion_limit": _STEPS})
        registry.register_agent(AGENT, self.build, spec=spec, door="send a file to POST /transcription.")
        if self._background is not None:
            self._background.worker.on_over = self.forget
            self._background.chores.append(self.watch)

    def build(self, context: GraphContext) -> AgentGraph:
        """Its graph. The model that listens is in the state."""
        return build_transcription_graph(self)

    # -- for owners --

    async def submit(
        self, spool: Spool, request: JobRequest, caller: Principal, *, run_id: str | None = None
    ) -> RunAccepted:
        """Take over the spooled file and write the run down; from then on it will be done.

        Args:
            run_id: as of `BackgroundService.submit`.

        Raises:
            NotFound: the caller has no such session.
            ModelNotFound, Forbidden, InvalidRequest, UnsupportedMedia, TooLarge: as `TranscriptionService.begin`.
            Conflict: the session is busy.
            RateLimited: too many in the queue.
            Unavailable: the server is stopping, or it cannot be written down.
        """
        runs = self._runs.runs
        known = await runs.known(run_id, caller)
        if known is not None:
            return known
        await runs.check_room(request.webhook)
        kind = SessionKind.AGENT
        if request.session_id is not None:
            kind = (await require_session(self._store, request.session_id, caller)).kind
        options, model = await self._resolve(request.options, caller)
        info = await self._transcription.look(request.upload)
        new = self._submission(request, options, model, kind, info, caller, run_id or str(uuid7()))
        # A client that leaves in the middle of it leaves a run, or nothing.
        return await asyncio.shield(asyncio.ensure_future(self._hand_over(spool, new)))

    async def result(self, run_id: str, caller: Principal) -> Finished:
        """The transcript of a background run.

        Raises:
            NotFound: the caller has no such transcription.
            Conflict: it is in progress, came to nothing, or was not kept.
        """
        async with self._store.reading() as work:
            run = await work.runs.owned(run_id, caller.user_id)
            if run is None or run.agent != AGENT:
                raise run_not_found()
            if run.status in ACTIVE:
                raise Conflict("The transcription is in progress.", code="run_in_progress")
            if run.status is not RunStatus.COMPLETED:
                why = f": {run.error_message}" if run.error_message else "."
                raise Conflict(f"There is no transcript, the run is {run.status.value}{why}", code="no_transcript")
            first = (run.first_index or 0) - 1
            stored = await work.raw_messages.find_by_session_id(run.session_id or "", after=first, limit=10)
        for raw in stored:
            if raw.run_id == run.id and (kept := _kept_of(raw.message_data)) is not None:
                return _finished(run, kept)
        raise Conflict("Only the text of this transcription is kept, with its run.", code="no_transcript")

    # -- the steps --

    async def decode(self, run_id: str, audio: dict[str, Any]) -> Plan:
        """The upload as sound, cut into parts that are lost at most.

        Raises:
            NotFound: the file is not here.
            RouteurError: as `TranscriptionService.decode` and `plan`.
        """
        sound = await self._decoded(run_id, audio)
        plan = await self._transcription.plan(sound, _options(audio), at_most=self._settings.background_part_seconds)
        return Plan(
            model=plan.model,
            info=asdict(sound.info),
            samples=sound.samples,
            spans=[[span.start, span.end] for span in plan.spans],
        )

    async def listen(self, run_id: str, audio: dict[str, Any], plan: Plan, first: int) -> list[dict[str, Any]]:
        """A few parts at once; when one of them fails, those before it.

        Raises:
            RouteurError: the first one failed.
        """
        whole = await self._plan(run_id, audio, plan)
        indexes = range(first, min(first + self._settings.parallel, len(whole.spans)))
        heard = await asyncio.gather(*(self._one(whole, index) for index in indexes), return_exceptions=True)
        done: list[dict[str, Any]] = []
        for part in heard:
            if isinstance(part, BaseException):
                if not done:
                    raise part
                break
            done.append(part.model_dump(mode="json"))
        return done

    def join(self, run_id: str, audio: dict[str, Any], plan: Plan, parts: list[dict[str, Any]]) -> Answer:
        """The answer: its text, and beside it everything else of the transcript."""
        whole = self._rebuilt(run_id, audio, plan)
        transcript = self._transcription.join(whole, [SpanTranscript.model_validate(part) for part in parts])
        kept = transcript.model_dump(mode="json", exclude={"text"})
        told = {"response_format": audio["response_format"], "wants_words": whole.options.words}
        return Answer(transcript.text, {"routeur_model": plan["model"], _KEPT: {**told, **kept}})

    def progress(self, plan: Plan, done: int, fresh: list[dict[str, Any]]) -> dict[str, Any]:
        """How far it is, and what was heard since the last time."""
        samples = plan["spans"][done - 1][1] if done else 0
        segments = [{name: segment[name] for name in sorted(_BRIEF)} for part in fresh for segment in part["segments"]]
        told = {
            "progress": 100 * samples // plan["samples"],
            "seconds": round(samples / SAMPLE_RATE, 3),
            "duration": round(plan["samples"] / SAMPLE_RATE, 3),
        }
        # An event has bounds, and how far it is matters more.
        return told if len(to_json(segments)) > _MOST_TOLD else {**told, "segments": segments}

    # -- their files --

    async def forget(self, run_id: str) -> None:
        """Remove the files of a run that is over; most runs have none."""
        if RUN_FOLDER.fullmatch(run_id):
            await asyncio.to_thread(remove_folder, self._uploads / run_id)

    async def sweep(self) -> int:
        """Remove the files of runs that are over, or were never written down; how many runs that were."""
        if self._background is None:
            return 0
        removed = 0
        for run_id in await asyncio.to_thread(_folders, self._uploads, _YOUNG):
            standing = await self._background.runs.standing(run_id)
            if standing not in ACTIVE:
                await self.forget(run_id)
                removed += 1
        return removed

    async def watch(self) -> None:
        """Sweep for ever: a process may die between the end of a run and its file's."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY)
            with suppress(RouteurError):
                await self.sweep()

    # -- within --

    @property
    def _runs(self) -> Background:
        if self._background is None:
            raise Unavailable("Background runs need SESSION_STORE_URL to be unset.", code="background_unavailable")
        return self._background

    async def _resolve(self, asked: TranscriptionOptions, caller: Principal) -> tuple[TranscriptionOptions, str]:
        """Who listens: with times, for whatever form is wanted later, where the model tells any."""
        model = await self._transcription.resolve(asked, caller)
        wanted = replace(asked, model=model.id)
        if self._transcription.tells_times(model):
            with suppress(InvalidRequest):
                await self._transcription.resolve(replace(wanted, times=True), caller)
                wanted = replace(wanted, times=True)
        return wanted, model.id

    def _submission(
        self,
        request: JobRequest,
        options: TranscriptionOptions,
        model: str,
        kind: SessionKind,
        info: AudioInfo,
        caller: Principal,
        run_id: str,
    ) -> Submission:
        now = datetime.now(UTC)
        length = "" if info.seconds is None else f" ({info.seconds:.1f} s)"
        question = f"[audio] {request.upload.name}{length}"
        audio = {
            "name": request.upload.name,
            "size": request.upload.size,
            "response_format": request.response_format.value,
            "options": asdict(replace(options, metadata={})),
        }
        return Submission(
            id=run_id,
            owner_id=caller.user_id,
            session_id=request.session_id or str(uuid7()),
            new_session=request.session_id is None,
            kind=kind,
            agent=AGENT,
            model=model,
            input=question,
            messages=[wire_record({"role": "user", "content": question}, now)],
            metadata=dict(request.options.metadata),
            request=RunParameters(state={"audio": audio}).model_dump(mode="json", exclude_none=True),
            title=one_line(question, _TITLE_CHARS),
            created_at=now,
            time_limit=self._settings.background_time_limit,
            webhook=request.webhook,
        )

    async def _hand_over(self, spool: Spool, new: Submission) -> RunAccepted:
        try:
            await spool.hand_over(new.id)
            return await self._runs.runs.submit_made(new)
        except BaseException:
            await self.forget(new.id)
            raise

    async def _decoded(self, run_id: str, audio: dict[str, Any]) -> DecodedAudio:
        folder = self._uploads / run_id
        upload = AudioUpload(folder / UPLOAD, audio["name"], audio["size"])
        if not await asyncio.to_thread(upload.path.is_file):
            raise NotFound(
                "The uploaded file is not here: every worker needs the DATA_DIR of the server that took it.",
                code="upload_gone",
            )
        # Whoever was taken for dead and is not may be reading the other one.
        target = folder / f"{new_message_id()}.pcm"
        sound = await self._transcription.decode(upload, target)
        await asyncio.to_thread(target.replace, folder / _SOUND)
        return replace(sound, path=folder / _SOUND)

    async def _plan(self, run_id: str, audio: dict[str, Any], plan: Plan) -> TranscriptionPlan:
        """The plan of an earlier step, and its sound again where that is not whole."""
        whole = self._rebuilt(run_id, audio, plan)
        if await asyncio.to_thread(_size_of, whole.audio.path) != 2 * plan["samples"]:
            await self._decoded(run_id, audio)
        return whole

    def _rebuilt(self, run_id: str, audio: dict[str, Any], plan: Plan) -> TranscriptionPlan:
        sound = DecodedAudio(self._uploads / run_id / _SOUND, AudioInfo(**plan["info"]), plan["samples"])
        spans = tuple(AudioSpan(start, end) for start, end in plan["spans"])
        return TranscriptionPlan(plan["model"], sound, spans, _options(audio))

    async def _one(self, plan: TranscriptionPlan, index: int) -> SpanTranscript:
        async with self._transcription.room:
            try:
                part = await self._transcription.transcribe_span(plan, index)
            except BaseException as error:
                if not isinstance(error, RouteurError) or error.code in MAY_HAVE_COST:
                    _charge(plan.model, None, None)
                raise
        _charge(plan.model, part.usage, None if part.usage else self._transcription.cost(plan, index))
        return part


def _charge(model: str, usage: Usage | None, cost_pico: int | None) -> None:
    """Tell the run that is going on what a call has cost."""
    listener = current_listener.get()
    if isinstance(listener, RunStream):
        listener.charged(model, usage, cost_pico)


def _options(audio: dict[str, Any]) -> TranscriptionOptions:
    return TranscriptionOptions(**audio["options"])


def _kept_of(message: dict[str, Any]) -> dict[str, Any] | None:
    """What was kept beside the text of an answer, with it."""
    fields = message.get("data", {})
    kept: dict[str, Any] | None = fields.get("response_metadata", {}).get(_KEPT)
    return None if kept is None else {**kept, "text": fields.get("content", "")}


def _finished(run: Run, kept: dict[str, Any]) -> Finished:
    form, words = TranscriptFormat(kept.pop("response_format")), bool(kept.pop("wants_words"))
    return Finished(run.id, run.session_id or "", Transcript.model_validate(kept), form, words)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _folders(uploads: Path, older_than: float) -> Sequence[str]:
    found = []
    with suppress(FileNotFoundError):
        for folder in uploads.iterdir():
            with suppress(OSError):
                if RUN_FOLDER.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > older_than:
                    found.append(folder.name)
    return found
