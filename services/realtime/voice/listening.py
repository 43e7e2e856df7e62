"""What is said in a turn, by the models that transcribe uploads; those inside the house listen while it is said."""

import asyncio
import logging
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from core.metrics import Metrics
from domain.audio import SAMPLE_RATE, AudioInfo, DecodedAudio, SpanTranscript, TranscriptionOptions, TranscriptionPlan
from domain.auth import Principal
from domain.errors import InvalidRequest, RouteurError, UpstreamTimeout
from domain.ports import RecordStore
from domain.runs import ModelCall, counted_columns
from domain.usage import Usage, to_pico
from services.llm_service import ResolvedModel
from services.realtime.audio_buffer import BYTES_PER_SECOND
from services.realtime.schemas import AudioFormat, Transcription
from services.realtime.seams import Heard
from services.realtime.voice.forms import Incoming
from services.realtime.voice.live import LiveEar, LiveEars
from services.transcription_providers.offline import NAME as POCKETSPHINX
from services.transcription_service import TranscriptionService

logger = logging.getLogger(__name__)

_LIVE = f"offline/{POCKETSPHINX}"
_MOST_BEHIND = 5 * 2 * SAMPLE_RATE  # bytes of PCM that a live ear may owe; further behind, the end is waited for
_PATIENCE = 10.0  # seconds that a live ear waits for more
_MODEL_CHARS = 255
Tell = Callable[[str], None]


class TranscriptionListener:
    """`seams.Listener` and `seams.Follower`.

    Args:
        live: processes that listen while somebody speaks.
    """

    def __init__(self, service: TranscriptionService, store: RecordStore, metrics: Metrics, live: int) -> None:
        self.service = service
        self.ears = LiveEars(live)
        self._store = store
        self._metrics = metrics

    async def listen(self, sound: bytes, form: AudioFormat, wanted: Transcription | None, caller: Principal) -> Heard:
        """As `seams.Listener.listen`."""
        return await self.hear(sound, form, await self.resolve(wanted, caller), wanted, caller)

    def follow(self, form: AudioFormat, wanted: Transcription | None, caller: Principal) -> "FollowedTurn":
        """As `seams.Follower.follow`."""
        return FollowedTurn(self, form, wanted, caller)

    async def resolve(self, wanted: Transcription | None, caller: Principal) -> ResolvedModel:
        """Who listens.

        Raises:
            RouteurError: as `TranscriptionService.resolve`.
        """
        try:
            return await self.service.resolve(_options(wanted), caller)
        except InvalidRequest as error:
            error.param = f"session.audio.input.transcription.{error.param or 'model'}"
            raise

    async def hear(
        self,
        sound: bytes,
        form: AudioFormat,
        model: ResolvedModel,
        wanted: Transcription | None,
        caller: Principal,
        tell: Tell | None = None,
    ) -> Heard:
        """A whole turn at once; it is in the record then."""
        limit = self.service.settings.time_limit
        try:
            async with asyncio.timeout(limit) as clock:
                with tempfile.TemporaryDirectory(prefix="turn-", ignore_cleanup_errors=True) as folder:
                    audio = await self.service.threads.run(_decoded, sound, form, Path(folder) / "sound.pcm")
                    plan = await self.service.plan(audio, _options(wanted, model.id))
                    parts = [await self._part(plan, index, tell) for index in range(len(plan.spans))]
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise UpstreamTimeout(f"It took longer than its limit of {limit:g} s.", code="run_timed_out") from error
        heard = self.service.join(plan, parts)
        await self.note(model, audio.seconds, heard.usage, caller)
        return Heard(heard.text, round(audio.seconds, 3), heard.usage)

    async def _part(self, plan: TranscriptionPlan, index: int, tell: Tell | None) -> SpanTranscript:
        async with self.service.room:
            stream = await self.service.stream_span(plan, index) if tell is not None else None
            if stream is None or tell is None:
                return await self.service.transcribe_span(plan, index)
            whole: SpanTranscript | None = None
            async with stream as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        tell(piece)
                    else:
                        whole = piece
            return whole or SpanTranscript(text="")

    async def note(self, model: ResolvedModel, seconds: float, usage: Usage | None, caller: Principal) -> None:
        """Write down what it cost. What was said is known already: a record that fails goes to the log."""
        self._metrics.model_called(model.id, usage)
        llm = self.service.llm
        rate = llm.price_per_minute(model.id)
        cost = None if rate is None else to_pico(rate * Decimal(str(round(seconds, 3))) / 60)
        if usage is not None and (price := llm.price(model.id)) is not None:
            cost = to_pico(price.cost(usage))
        call = ModelCall(
            owner_id=caller.user_id,
            run_id=None,
            session_id=None,
            agent="",
            model=model.id[:_MODEL_CHARS],
            created_at=datetime.now(UTC),
            **counted_columns(usage, cost),
        )
        try:
            await self._store.note_call(call)
        except RouteurError as error:
            logger.error("a call could not be written down", extra={"model": model.id, "code": error.code})

    async def aclose(self) -> None:
        """End the processes that listen."""
        await self.ears.aclose()


class FollowedTurn:
    """`seams.Hearing`. A model that cannot listen while somebody speaks hears the turn when it is over."""

    def __init__(
        self, listener: TranscriptionListener, form: AudioFormat, wanted: Transcription | None, caller: Principal
    ) -> None:
        self._listener = listener
        self._form = form
        self._wanted = wanted
        self._caller = caller
        self._incoming = Incoming(form)
        self._work: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._waiting = 0  # bytes in it
        self._lost = False  # it could not keep up
        self._texts: list[str] = []
        self._over = asyncio.Event()
        self._task = asyncio.create_task(self._follow(), name="following a turn")

    def feed(self, sound: bytes) -> None:
        """As `seams.Hearing.feed`."""
        if self._lost or self._task.done():
            return
        pcm = self._incoming.feed(sound)
        self._waiting += len(pcm)
        if self._waiting > _MOST_BEHIND:
            self._lost = True
        else:
            self._work.put_nowait(pcm)

    def pause(self) -> None:
        """As `seams.Hearing.pause`."""
        if not self._lost:
            self._work.put_nowait(None)

    async def finish(self, sound: bytes, tell: Tell) -> Heard:
        """As `seams.Hearing.finish`."""
        self._over.set()
        self._work.put_nowait(None)
        try:
            followed = await self._task
        except BaseException:
            self.drop()
            raise
        listener, seconds = self._listener, round(len(sound) / BYTES_PER_SECOND[self._form.type], 3)
        if followed is not None:
            model, text = followed
            await listener.note(model, seconds, None, self._caller)
            return Heard(text, seconds)
        model = await listener.resolve(self._wanted, self._caller)
        return await listener.hear(sound, self._form, model, self._wanted, self._caller, tell)

    def drop(self) -> None:
        """As `seams.Hearing.drop`."""
        self._task.cancel()

    async def _follow(self) -> tuple[ResolvedModel, str] | None:
        """Listen to the end of the turn; None: it must be heard as a whole."""
        try:
            model = await self._listener.resolve(self._wanted, self._caller)
        except RouteurError:
            return None  # whoever waits for the words is told
        if model.id != _LIVE or (ear := await self._listener.ears.take()) is None:
            return None
        try:
            return (model, " ".join(filter(None, self._texts))) if await self._listen(ear) else None
        finally:
            ear.give_back()

    async def _listen(self, ear: LiveEar) -> bool:
        fed = False
        while True:
            try:
                async with asyncio.timeout(_PATIENCE):
                    pcm = await self._work.get()
            except TimeoutError:
                return False  # somebody else may need the ear
            if self._lost or ear.behind > _MOST_BEHIND:
                self._lost = True
                return False
            if pcm is not None:
                self._waiting -= len(pcm)
                ear.feed(pcm)
                fed = True
                continue
            if fed:
                words = await ear.words()
                if words is None:
                    return False
                self._texts.append(words)
                fed = False
            if self._over.is_set() and self._work.empty():
                return True


def _options(wanted: Transcription | None, model: str | None = None) -> TranscriptionOptions:
    if wanted is None:
        return TranscriptionOptions(model=model)
    return TranscriptionOptions(model=model or wanted.model, language=wanted.language, prompt=wanted.prompt)


def _decoded(sound: bytes, form: AudioFormat, path: Path) -> DecodedAudio:
    """The turn as a file for whoever listens; it blocks."""
    incoming = Incoming(form)
    pcm = incoming.feed(sound) + incoming.end()
    path.write_bytes(pcm)
    samples = len(pcm) // 2
    return DecodedAudio(path, AudioInfo("raw", "pcm_s16le", SAMPLE_RATE, 1, samples / SAMPLE_RATE), samples)
