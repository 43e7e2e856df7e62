"""Where nobody speaks: to cut a long file between words, and to send only what is speech.

The PCM is read by memory map. Energy is reckoned with numpy; the voice activity detector, which is slow, only looks
where it has to.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from core.audio.extras import need
from core.audio.threads import stop_asked
from domain.audio import SAMPLE_RATE, AudioSpan, DecodedAudio
from domain.errors import Unavailable

_FRAME = SAMPLE_RATE * 30 // 1000
_MODE = 2  # of the detector: 0 takes everything for speech, 3 nearly nothing
_WARM_UP = 20  # frames that the detector hears before those it is asked about
_LOOK_BACK = 30.0  # seconds before the end of a window in which a pause is looked for
_PAUSE = 3  # frames; shorter ones are inside of words
_PADDING = SAMPLE_RATE * 200 // 1000


def split(audio: DecodedAudio, longest: float, *, shortest: float = 1.0) -> list[AudioSpan]:
    """Spans of at most `longest` seconds that cover all of it, cut in pauses where there are any. It blocks.

    Raises:
        ValueError: `longest` is not at least twice `shortest`.
    """
    if longest < 2 * shortest or shortest <= 0:
        raise ValueError("longest must be at least twice shortest")
    most, least = int(longest * SAMPLE_RATE), int(shortest * SAMPLE_RATE)
    back = min(int(_LOOK_BACK * SAMPLE_RATE), most // 3)
    spans, start = [], 0
    with _pcm(audio) as pcm:
        while audio.samples - start > most:
            _check()
            last = min(start + most, audio.samples - least)
            cut = _cut(pcm, max(start + least, last - back), last)
            spans.append(AudioSpan(start, cut))
            start = cut
    if start < audio.samples:
        spans.append(AudioSpan(start, audio.samples))
    return spans


def speech_spans(audio: DecodedAudio) -> list[AudioSpan]:
    """Where somebody speaks, with 200 ms around it; what touches then (pauses under 400 ms) is one. It blocks."""
    spans: list[AudioSpan] = []
    frame = 0
    with _pcm(audio) as pcm:
        for speaks, run in groupby(_voices(pcm, 0, audio.samples // _FRAME)):
            start, frame = frame, frame + sum(1 for _ in run)
            if speaks:
                _join(spans, start * _FRAME, frame * _FRAME, audio.samples)
    return spans


def _join(spans: list[AudioSpan], start: int, end: int, samples: int) -> None:
    padded = AudioSpan(max(0, start - _PADDING), min(samples, end + _PADDING))
    if spans and padded.start <= spans[-1].end:
        spans[-1] = AudioSpan(spans[-1].start, padded.end)
    else:
        spans.append(padded)


def _cut(pcm: Any, first: int, last: int) -> int:
    """The best sample from `first` to `last` to cut at."""
    frames = (last - first) // _FRAME
    if frames < 1:
        return last
    offset = last - frames * _FRAME
    pause = _longest_pause(pcm[: offset + frames * _FRAME], offset, frames)
    return offset + (pause if pause is not None else _quietest(pcm, offset, frames))


def _longest_pause(pcm: Any, offset: int, frames: int) -> int | None:
    """The middle of the longest run of frames without a voice, in samples from `offset`."""
    warm_up = min(_WARM_UP, offset // _FRAME)
    voices = list(_voices(pcm[offset - warm_up * _FRAME :], 0, warm_up + frames))[warm_up:]
    best, middle, at = _PAUSE - 1, None, 0
    for speaks, run in groupby(voices):
        length = sum(1 for _ in run)
        if not speaks and length > best:
            best, middle = length, at * _FRAME + length * _FRAME // 2
        at += length
    return middle


def _quietest(pcm: Any, offset: int, frames: int) -> int:
    """The middle of the frame with the least energy, its neighbours counted in."""
    numpy = need("numpy")
    block = pcm[offset : offset + frames * _FRAME].astype(numpy.float32).reshape(frames, _FRAME)
    energy = numpy.convolve((block * block).mean(axis=1), numpy.ones(3), mode="same")
    if frames > 2:
        energy[0] = energy[-1] = numpy.inf  # they have one neighbour less
    return int(energy.argmin()) * _FRAME + _FRAME // 2


def _voices(pcm: Any, start: int, frames: int) -> Iterator[bool]:
    """Frame by frame: does somebody speak?"""
    detector = need("webrtcvad").Vad(_MODE)
    for number in range(start, start + frames):
        if number % 1_000 == 0:
            _check()
        yield detector.is_speech(pcm[number * _FRAME : (number + 1) * _FRAME].tobytes(), SAMPLE_RATE)


@contextmanager
def _pcm(audio: DecodedAudio) -> Iterator[Any]:
    numpy = need("numpy")
    if audio.samples == 0:
        yield numpy.zeros(0, dtype="<i2")
    else:
        yield numpy.memmap(audio.path, dtype="<i2", mode="r", shape=(audio.samples,))


def _check() -> None:
    if stop_asked():
        raise Unavailable("The audio is no longer wanted.", code="audio_cancelled")
