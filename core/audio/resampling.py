"""Speech at another rate: by PyAV where it is installed, else by four-point interpolation, enough for a synthesizer."""

from array import array
from math import gcd
from sys import byteorder
from typing import Any, Protocol

from core.audio.extras import need
from domain.errors import Unavailable

_LOUDEST = 32_767


class Resampler(Protocol):
    """Mono PCM, 16 bit little endian, from one rate to another, as it is made."""

    def feed(self, pcm: bytes) -> bytes:
        """What can be said after these whole samples."""
        ...

    def end(self) -> bytes:
        """The last samples."""
        ...


def resampler(source: int, target: int) -> Resampler:
    """The best there is here."""
    try:
        return AvResampler(source, target)
    except Unavailable:
        return PlainResampler(source, target)


class AvResampler:
    """PyAV's: a hundred times as fast, and it lets others work meanwhile."""

    def __init__(self, source: int, target: int) -> None:
        self._av = need("av")
        self._rate = source
        self._resampler = self._av.AudioResampler("s16", "mono", target)

    def feed(self, pcm: bytes) -> bytes:
        """What can be said after these whole samples."""
        if not pcm:
            return b""
        frame = self._av.AudioFrame("s16", "mono", samples=len(pcm) // 2)
        frame.sample_rate = self._rate
        frame.planes[0].update(pcm)
        return self._made(frame)

    def end(self) -> bytes:
        """The last samples."""
        return self._made(None)

    def _made(self, frame: Any) -> bytes:
        return b"".join(bytes(part.planes[0])[: part.samples * 2] for part in self._resampler.resample(frame))


class PlainResampler:
    """Ours, of Python alone: a fortieth of the sound's own time."""

    def __init__(self, source: int, target: int) -> None:
        part = gcd(source, target)
        self._step, self._phases = source // part, target // part
        self._weights = [_weights(phase / self._phases) for phase in range(self._phases)]
        self._at = 0  # where the next sample is, in parts of a source sample after the second that is held
        self._held = array("h", [0])

    def feed(self, pcm: bytes) -> bytes:
        """What can be said after these whole samples."""
        if self._step == self._phases:
            return pcm
        fresh = _samples(pcm)
        if len(self._held) == 1 and len(fresh):
            self._held[0] = fresh[0]  # before the first sample there was the same
        held = self._held + fresh
        made, at, phases, step, weights = [], self._at, self._phases, self._step, self._weights
        end = (len(held) - 3) * phases
        while at < end:
            first, phase = divmod(at, phases)
            a, b, c, d = weights[phase]
            made.append(int(a * held[first] + b * held[first + 1] + c * held[first + 2] + d * held[first + 3]))
            at += step
        gone = min(at // phases, max(0, len(held) - 3))
        self._held, self._at = held[gone:], at - gone * phases
        return _bytes(made)

    def end(self) -> bytes:
        """The last samples."""
        if self._step == self._phases or len(self._held) == 1:
            return b""
        return self.feed(_bytes([self._held[-1]] * 2))


def _weights(x: float) -> tuple[float, float, float, float]:
    """Catmull and Rom's, between the second and the third of four samples."""
    return (
        ((-0.5 * x + 1) * x - 0.5) * x,
        (1.5 * x - 2.5) * x * x + 1,
        ((-1.5 * x + 2) * x + 0.5) * x,
        (0.5 * x - 0.5) * x * x,
    )


def _samples(pcm: bytes) -> "array[int]":
    samples = array("h", pcm)
    if byteorder == "big":
        samples.byteswap()
    return samples


def _bytes(samples: list[int]) -> bytes:
    out = array("h", [max(-_LOUDEST, min(_LOUDEST, sample)) for sample in samples])
    if byteorder == "big":
        out.byteswap()
    return out.tobytes()
