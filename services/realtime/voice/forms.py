"""Sound in a client's coding, and as those who hear and speak want it."""

from collections.abc import Mapping

from core.audio import telephony
from core.audio.resampling import resampler
from domain.audio import SAMPLE_RATE
from domain.speech import PCM_RATE
from services.realtime.schemas import AudioFormat

_LAWS: Mapping[str, telephony.Law] = {"audio/pcmu": "mu", "audio/pcma": "a"}


class Incoming:
    """From what a client sends to mono PCM of 16 kHz, as it comes."""

    def __init__(self, form: AudioFormat) -> None:
        self._law = _LAWS.get(form.type)
        self._resampler = resampler(PCM_RATE if self._law is None else telephony.RATE, SAMPLE_RATE)

    def feed(self, sound: bytes) -> bytes:
        """What can be said after this."""
        return self._resampler.feed(sound if self._law is None else telephony.decode(sound, self._law))

    def end(self) -> bytes:
        """The last samples."""
        return self._resampler.end()


class Outgoing:
    """From PCM of 24 kHz, whose samples may be cut in two, to what a client wants to hear."""

    def __init__(self, form: AudioFormat) -> None:
        self._law = _LAWS.get(form.type)
        self._resampler = None if self._law is None else resampler(PCM_RATE, telephony.RATE)
        self._half = b""

    def feed(self, pcm: bytes) -> bytes:
        """What can be said after this."""
        pcm = self._half + pcm
        whole = len(pcm) // 2 * 2
        self._half, pcm = pcm[whole:], pcm[:whole]
        if self._resampler is None or self._law is None:
            return pcm
        return telephony.encode(self._resampler.feed(pcm), self._law)

    def end(self) -> bytes:
        """The last samples."""
        if self._resampler is None or self._law is None:
            return b""
        return telephony.encode(self._resampler.end(), self._law)
