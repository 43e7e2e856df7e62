"""Transcription: a file in, what was said in it out. A transcription is a run like any other: limited and written down.

Its steps stand alone, so that others may take them one by one: `decode`, `plan`, `transcribe_span`, `join`.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from config.routing_settings import POOL
from config.settings import Settings
from core.audio.decoding import decode, probe
from core.audio.limits import AudioLimits
from core.audio.silences import split
from core.audio.spool import Spool, sweep
from core.audio.threads import AudioThreads
from domain.audio import (
    AudioInfo,
    AudioSpan,
    AudioUpload,
    DecodedAudio,
    SpanTranscript,
    Transcript,
    TranscriptionOptions,
    TranscriptionPlan,
    joined,
)
from domain.auth import Principal
from domain.enums import SessionKind
from domain.errors import Forbidden, InvalidRequest, RouteurError, TooLarge, Unavailable, UpstreamTimeout
from domain.ports import RecordStore
from domain.usage import to_pico
from services.llm_service import LLMService, ResolvedModel
from services.open_runs import OpenRuns
from services.run_recorder import Asked, RunRecorder
from services.session_service import require_session
from services.transcription_providers.base import BaseTranscriber, Sound, Surroundings
from services.transcription_run import AGENT, TranscriptionRun
from services.wire_messages import wire_record

_DEFAULTS = {"openai": "whisper-1", "mistral": "voxtral-mini-latest"}
_VENDORS = ("openai", "mistral", "compatible", "offline", "whisper")
_SHORTEST = 1.0  # seconds of a part
_NO_MODEL = (
    "No model that transcribes is configured. Set OPENAI_API_KEY, MISTRAL_API_KEY, COMPATIBLE_PROVIDERS or "
    "WHISPER_MODELS_DIR; OFFLINE_PROVIDER=true offers the embedded demonstration."
)


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """A file that is to be transcribed.

    Attributes:
        folder: where its decoded sound may be put; whoever asks removes it.
        streamed: the words are wanted as they are heard.
    """

    upload: AudioUpload
    folder: Path
    options: TranscriptionOptions
    session_id: str | None = None
    streamed: bool = False


class TranscriptionService:
    """Transcribes for callers.

    Attributes:
        room: parts that are transcribed at once, of all files.
        threads: where sound is worked on.
    """

    def __init__(
        self,
        llm: LLMService,
        runs: OpenRuns,
        store: RecordStore,
        recorder: RunRecorder,
        settings: Settings,
        threads: AudioThreads,
    ) -> None:
        self.llm = llm
        self.runs = runs
        self.settings = settings.transcription
        self.room = asyncio.Semaphore(self.settings.at_once)
        self._store = store
        self._recorder = recorder
        self.threads = threads
        self._limits = AudioLimits.of(settings)
        self._uploads = settings.storage.data_dir / "uploads"
        self._ears: dict[str, BaseTranscriber] = {}

    # -- for somebody who waits --

    def check_room(self) -> None:
        """Raises:
        RateLimited: too many runs at once.
        """
        self.runs.check_room()

    def spool(self) -> Spool:
        """A place on disk for one upload."""
        return Spool(self._uploads, self._limits.max_bytes)

    async def begin(self, request: TranscriptionRequest, caller: Principal) -> TranscriptionRun:
        """A transcription, decoded and written down, and nothing asked of a model yet.

        Raises:
            NotFound: the caller has no such session.
            ModelNotFound: no configured provider has the model.
            Forbidden: the caller's key does not allow this model, or no transcriptions.
            InvalidRequest, UnsupportedMedia, TooLarge: the file, or what is asked of the model.
            Conflict: another run of the session is in progress.
            Unavailable: it cannot be written down.
            RateLimited: too many runs at once.
        """
        began = asyncio.get_running_loop().time()
        self.check_room()
        kind = SessionKind.AGENT
        if request.session_id is not None:
            kind = (await require_session(self._store, request.session_id, caller)).kind
        model = await self.resolve(request.options, caller)
        limit = self.settings.time_limit
        try:
            async with asyncio.timeout(limit) as clock:
                audio = await self.decode(request.upload, request.folder / "sound.pcm")
                self._check_length(audio)
                plan = await self.plan(audio, replace(request.options, model=model.id))
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise UpstreamTimeout(f"It took longer than its limit of {limit:g} s.", code="run_timed_out") from error
        question = f"[audio] {request.upload.name} ({audio.seconds:.1f} s)"
        book = await self._recorder.begin(
            Asked(
                caller=caller,
                kind=kind,
                agent=AGENT,
                model=model.id,
                session_id=request.session_id,
                messages=[wire_record({"role": "user", "content": question}, datetime.now(UTC))],
                text=question,
                metadata={**request.options.metadata, "audio_seconds": round(audio.seconds, 3)},
            )
        )
        left = limit - (asyncio.get_running_loop().time() - began)
        run = TranscriptionRun(self, book, plan, limit, left, streamed=request.streamed)
        self._recorder.follow(run)
        return run

    # -- step by step --

    async def resolve(self, options: TranscriptionOptions, caller: Principal) -> ResolvedModel:
        """The model that shall transcribe.

        Raises:
            ModelNotFound, Forbidden, InvalidRequest, Unavailable: as `begin`.
        """
        if caller.allowed_agents and AGENT not in caller.allowed_agents:
            raise Forbidden("This key may not transcribe.", code="agent_not_allowed")
        asked = options.model or self.settings.model
        model = await (self.llm.resolve(asked, kind="transcription") if asked else self._default())
        if caller.allowed_models and model.id not in caller.allowed_models:
            raise Forbidden(f"This key may not use the model '{model.id}'.", code="model_not_allowed", param="model")
        self._transcriber(model).check(model.name, options)
        return model

    async def look(self, upload: AudioUpload) -> AudioInfo:
        """What a file says that it is, without decoding it.

        Raises:
            InvalidRequest, UnsupportedMedia, TooLarge, Unavailable: it is no sound that we take, as far as one can see.
        """
        try:
            info = await self.threads.run(probe, upload.path)
        except InvalidRequest as error:
            error.param = error.param or "file"
            raise
        if info.seconds is not None and info.seconds > self._limits.max_seconds:
            raise TooLarge(
                f"The sound is longer than {self._limits.max_seconds:g} s.", code="audio_too_long", param="file"
            )
        return info

    async def decode(self, upload: AudioUpload, target: Path) -> DecodedAudio:
        """The upload's sound, as a file `target`.

        Raises:
            InvalidRequest, UnsupportedMedia, TooLarge, Unavailable: it is no sound that we take.
        """
        try:
            return await self.threads.run(decode, upload, target, self._limits)
        except InvalidRequest as error:
            error.param = error.param or "file"
            raise

    async def plan(
        self, audio: DecodedAudio, options: TranscriptionOptions, *, at_most: float | None = None
    ) -> TranscriptionPlan:
        """In which parts `audio` is to be transcribed: the same each time.

        Args:
            options: with a model, as `resolve` gave it.
            at_most: seconds of one part, where its provider and the settings would take longer ones.

        Raises:
            ModelNotFound, InvalidRequest: its model is not here (any more), or cannot do that.
        """
        model = await self.llm.resolve(options.model, kind="transcription")
        ears = self._transcriber(model)
        ears.check(model.name, options)
        every = (ears.longest(model.name), self.settings.part_seconds, at_most)
        bounds = [one for one in every if one is not None]
        longest = max(min(bounds, default=audio.seconds), 2 * _SHORTEST)
        spans = [AudioSpan(0, audio.samples)]
        if audio.seconds > longest:
            spans = await self.threads.run(split, audio, longest, shortest=_SHORTEST)
        return TranscriptionPlan(model.id, audio, tuple(spans), options)

    async def transcribe_span(self, plan: TranscriptionPlan, index: int) -> SpanTranscript:
        """What is said in one part; times are from the start of the whole file.

        Raises:
            RouteurError: of the upstream kinds, or InvalidRequest.
        """
        ears, name, sound = await self._part(plan, index)
        try:
            heard = await ears.transcribe(name, sound, plan.options)
        except RouteurError as error:
            if len(plan.spans) > 1:
                error.message = f"{error.message} (In part {index + 1} of {len(plan.spans)}.)"
            raise
        return heard.moved(sound.span)

    async def stream_span(
        self, plan: TranscriptionPlan, index: int
    ) -> AbstractAsyncContextManager[AsyncIterator[str | SpanTranscript]] | None:
        """The same, piece by piece, times from the start of the part; None: its provider tells at the end only."""
        ears, name, sound = await self._part(plan, index)
        return ears.stream(name, sound, plan.options)

    def join(self, plan: TranscriptionPlan, parts: Sequence[SpanTranscript]) -> Transcript:
        """All parts, in their order, as one."""
        return joined(plan, parts)

    def tells_times(self, model: ResolvedModel) -> bool:
        """Is it known beforehand whether that model tells times?"""
        return self._transcriber(model).tells_times

    def cost(self, plan: TranscriptionPlan, index: int) -> int | None:
        """Picodollars for listening to one part, where its length is what is charged; None: unknown."""
        rate = self.llm.price_per_minute(plan.model)
        seconds = Decimal(str(round(plan.spans[index].seconds, 3)))
        return None if rate is None else to_pico(rate * seconds / 60)

    def _check_length(self, audio: DecodedAudio) -> None:
        longest = self.settings.sync_seconds
        if longest is not None and audio.seconds > longest:
            raise TooLarge(
                f"The sound lasts {audio.seconds:.0f} s; longer than {longest:g} s is transcribed in the background: "
                "POST /transcription with background=true.",
                code="audio_too_long_to_wait",
                param="file",
            )

    # -- who listens --

    async def _default(self) -> ResolvedModel:
        found = await self.llm.first_of_kind("transcription", _DEFAULTS)
        if found is None:
            raise Unavailable(_NO_MODEL, code="no_model")
        return found

    async def _part(self, plan: TranscriptionPlan, index: int) -> tuple[BaseTranscriber, str, Sound]:
        model = await self.llm.resolve(plan.model, kind="transcription")
        return self._transcriber(model), model.name, Sound(plan.audio, plan.spans[index], self.threads)

    def _transcriber(self, model: ResolvedModel) -> BaseTranscriber:
        """The ears of its provider, made when they are first needed.

        Raises:
            InvalidRequest: that provider does not transcribe.
        """
        made = self._ears.get(model.provider)
        if made is not None:
            return made
        if model.provider == POOL:
            raise _deaf("A pool does not transcribe: name one of its models.")
        provider, _ = self.llm.provider_of(model.id)
        vendor = provider.config.vendor
        if vendor not in _VENDORS:
            raise _deaf(f"The provider '{model.provider}' has no transcription.")
        module = importlib.import_module(f"services.transcription_providers.{vendor}")
        surroundings = Surroundings(provider.config, provider.client, self.settings, self.threads)
        ears: BaseTranscriber = module.Transcriber(surroundings)
        self._ears[model.provider] = ears
        return ears

    async def sweep(self) -> None:
        """Remove the files of processes that are gone."""
        await asyncio.to_thread(sweep, self._uploads)

    async def aclose(self) -> None:
        """Let go of every provider's own things."""
        await asyncio.gather(*(ears.aclose() for ears in self._ears.values()))


def _deaf(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="transcription_not_supported", param="model")


@asynccontextmanager
async def open_transcription(
    llm: LLMService, runs: OpenRuns, store: RecordStore, recorder: RunRecorder, settings: Settings
) -> AsyncIterator[TranscriptionService]:
    """The service and its threads, until the context ends."""
    async with AsyncExitStack() as stack:
        threads = AudioThreads(settings.audio.threads)
        stack.push_async_callback(threads.close)
        service = TranscriptionService(llm, runs, store, recorder, settings, threads)
        stack.push_async_callback(service.aclose)
        await service.sweep()
        yield service
