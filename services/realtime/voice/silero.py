"""Silero VAD, the model: what of a sound is speech. The only module that knows onnxruntime; import it when needed."""

from pathlib import Path
from typing import Any

import numpy
import onnxruntime

from domain.audio import SAMPLE_RATE

WINDOW = 512  # samples: the model takes no other number
_CONTEXT = 64  # samples of the window before
_RATE = numpy.array(SAMPLE_RATE, numpy.int64)
_LOUDEST = numpy.float32(32_768)
_SOFTEST = 33  # a thousandth of the loudest: in a window without a louder sample nobody speaks
_LEAST, _MOST = 0.1, 0.95  # thresholds: under the one, noise is speech; over the other, hardly anything is
_HYSTERESIS = 0.15  # who speaks already goes on speaking down to so much under the threshold
_RESET_WINDOWS = 62  # 2 s; other sounds than speech make the model's memory deaf in time, so it is cleared now and then
_CLEAR, _CLEAR_WINDOWS = 0.1, 5  # but only where so many windows in a row were so surely no speech
_SETTLED_WINDOWS = 10  # silent windows after which the model's memory does not change any more


def load(path: Path) -> onnxruntime.InferenceSession:
    """The model, for all sessions; its `run` may be called by any thread. It blocks for 50 ms and takes 9 MB.

    Raises:
        Exception: onnxruntime's own; there is no such file, or it is not that model.
    """
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1  # a window takes 0.15 ms: no work to share
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])


class SileroActivity:
    """`Activity` of one session, which is a memory of what was heard; the model is shared.

    Args:
        threshold: the probability from which a window is speech; kept between 0.1 and 0.95.
    """

    window_ms = 32

    def __init__(self, model: onnxruntime.InferenceSession, threshold: float) -> None:
        self._model = model
        self._begins = min(max(threshold, _LEAST), _MOST)
        self._goes_on = max(self._begins - _HYSTERESIS, _LEAST / 2)
        self._speaks = False
        self._silent = 0  # windows in a row, as `_clear` is
        self._clear = 0
        self._scored = 0  # windows since the memory was cleared
        self._context = numpy.zeros(_CONTEXT, numpy.float32)
        self._memory = _empty()

    def is_speech(self, window: bytes) -> bool:
        """As `Activity.is_speech`. Where there is no sound at all nobody speaks, and soon nothing is reckoned."""
        samples = numpy.frombuffer(window, "<i2").astype(numpy.float32)
        silent = bool(numpy.abs(samples).max() < _SOFTEST)
        self._silent = self._silent + 1 if silent else 0
        if self._silent > _SETTLED_WINDOWS:
            self._context = numpy.zeros(_CONTEXT, numpy.float32)
            return False
        score = self._score(samples / _LOUDEST)
        self._speaks = not silent and score >= (self._goes_on if self._speaks else self._begins)
        self._forget_in_time(score)
        return self._speaks

    def _score(self, samples: Any) -> float:
        given = numpy.concatenate((self._context, samples))[numpy.newaxis]
        scores, self._memory = self._model.run(None, {"input": given, "state": self._memory, "sr": _RATE})
        self._context = samples[-_CONTEXT:]
        return float(scores[0, 0])

    def _forget_in_time(self, score: float) -> None:
        self._scored += 1
        self._clear = self._clear + 1 if score < _CLEAR else 0
        if self._scored >= _RESET_WINDOWS and self._clear >= _CLEAR_WINDOWS:
            self._memory = _empty()
            self._scored = 0


def _empty() -> Any:
    return numpy.zeros((2, 1, 128), numpy.float32)
