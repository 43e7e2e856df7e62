"""The models that tell turns: they lie in pipecat's wheel (the extra `voice`), and are loaded when somebody speaks.

Loading and judging are done in threads, never on the event loop. The packages are imported then, and not before.
"""

import asyncio
import importlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from core.logging import safe_line
from domain.errors import Unavailable
from services.realtime.schemas import TurnDetection
from services.realtime.voice.activity import Activity

if TYPE_CHECKING:
    from services.realtime.voice.smart_turn import SmartTurn

logger = logging.getLogger(__name__)

_PIPECAT, _ONNX = "pipecat", "onnxruntime"
_SILERO_ROOM, _SMART_TURN_ROOM = (f"services.realtime.voice.{room}" for room in ("silero", "smart_turn"))
_SILERO_FILE = Path("audio", "vad", "data", "silero_vad.onnx")
_AT_ONCE = 2  # judgements; each takes a core for 0.1 s
_importing = threading.Lock()
T = TypeVar("T")


def installed() -> bool:
    """True when the extra `voice` is here."""
    return find_spec(_PIPECAT) is not None and find_spec(_ONNX) is not None


class VoiceModels:
    """Silero, one for all sessions, and Smart Turn, one for each judgement that goes on. `close` it."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="turns")
        self._silero = _Once("Silero VAD", _load_silero, self._threads)
        self._smart_turn = _Once("Smart Turn", self._load_smart_turn, self._threads)
        self._idle: deque[SmartTurn] = deque()

    async def prepare(self, wanted: TurnDetection) -> None:
        """Load what that needs; quick once it is there.

        Raises:
            Unavailable: it cannot be loaded; the log says why.
        """
        await self._silero.loaded()
        if wanted.type == "semantic_vad":
            await self._smart_turn.loaded()

    def activity(self, threshold: float) -> Activity:
        """`activity.Activities`: Silero's. It waits until the model is loaded: `prepare` it.

        Raises:
            Unavailable: it cannot be loaded.
        """
        return self._silero.get()(threshold)

    def judge(self, pcm: bytes) -> Future[bool]:
        """`completeness.Judge`: Smart Turn's."""
        return self._threads.submit(self._judged, pcm)

    def close(self) -> None:
        """Nothing more is judged, and nobody waits for what is."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _judged(self, pcm: bytes) -> bool:
        try:
            model = self._idle.pop()
        except IndexError:
            model = _smart_turn()
        complete = model.judge(pcm)
        self._idle.append(model)  # one that has failed is not used again
        return complete

    def _load_smart_turn(self) -> None:
        self._idle.append(_smart_turn())


class _Once(Generic[T]):
    """What is loaded in a thread when it is first asked for; whoever comes meanwhile waits for the same.

    What cannot be loaded once is not tried again: an installation that is repaired is started again.
    """

    def __init__(self, name: str, load: Callable[[], T], threads: ThreadPoolExecutor) -> None:
        self._name = name
        self._load = load
        self._threads = threads
        self._loading: Future[tuple[T] | None] | None = None

    async def loaded(self) -> None:
        """Wait until it is there.

        Raises:
            Unavailable: it cannot be loaded.
        """
        loading = self._begun()
        if not loading.done():
            await asyncio.wait({asyncio.wrap_future(loading)})
        self.get()

    def get(self) -> T:
        """It; blocks while it is being loaded.

        Raises:
            Unavailable: it cannot be loaded.
        """
        found = self._begun().result()
        if found is None:
            raise Unavailable(
                f"{self._name}, which tells turns, cannot be loaded: the server's log says why. "
                "With turn_detection null, the client commits.",
                code="voice_models_broken",
                param="session.audio.input.turn_detection",
            )
        return found[0]

    def _begun(self) -> "Future[tuple[T] | None]":
        if self._loading is None:
            self._loading = self._threads.submit(self._tried)
        return self._loading

    def _tried(self) -> tuple[T] | None:
        begun = time.perf_counter()
        try:
            found = self._load()
        except Exception as error:
            why = safe_line(f"{type(error).__name__}: {error}", 500)
            logger.error("a model that tells turns cannot be loaded", extra={"model": self._name, "why": why})
            return None
        took = round(time.perf_counter() - begun, 3)
        logger.info("a model that tells turns is loaded", extra={"model": self._name, "seconds": took})
        return (found,)


def _load_silero() -> Callable[[float], Activity]:
    spec = find_spec(_PIPECAT)  # which does not import it
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"there is no package {_PIPECAT}")
    room: Any = importlib.import_module(_SILERO_ROOM)
    model = room.load(Path(spec.origin).parent / _SILERO_FILE)

    def activity(threshold: float) -> Activity:
        made: Activity = room.SileroActivity(model, threshold)
        return made

    return activity


def _smart_turn() -> "SmartTurn":
    room: Any = _imported_quietly(_SMART_TURN_ROOM)
    made: SmartTurn = room.SmartTurn()
    return made


def _imported_quietly(room: str) -> ModuleType:
    """pipecat prints as it is imported and works, and (Python 3.11) puts a `wait_for` of its own into asyncio."""
    with _importing:
        wait_for = asyncio.wait_for
        importlib.import_module("loguru").logger.disable(_PIPECAT)
        try:
            return importlib.import_module(room)
        finally:
            asyncio.wait_for = wait_for
