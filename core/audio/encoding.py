"""Sound going out: spans of a file to a provider, and speech to a caller as it is made."""

from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from core.audio.extras import need
from domain.audio import SAMPLE_RATE, AudioSpan, DecodedAudio

if TYPE_CHECKING:
    import av

SpanForm: TypeAlias = Literal["wav", "flac", "mp3", "opus"]
SpeechForm: TypeAlias = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

_BLOCK = 1 << 20
_UNKNOWN = 0xFFFF_FFFF  # of a wav whose length is not known when it begins
_WIDE = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
#: Muxer, encoder, sample rates, options of the muxer, bits per second.
_FORMS: dict[str, tuple[str, str, tuple[int, ...], dict[str, str], int | None]] = {
    "mp3": ("mp3", "libmp3lame", _WIDE, {"write_xing": "0", "id3v2_version": "0"}, 64_000),
    "opus": ("ogg", "libopus", (8_000, 12_000, 16_000, 24_000, 48_000), {"page_duration": "200000"}, 32_000),
    "aac": ("adts", "aac", _WIDE, {}, 64_000),
    "flac": ("flac", "flac", (), {}, None),
}


def pcm(audio: DecodedAudio, span: AudioSpan) -> bytes:
    """The span as it is on disk. It blocks."""
    with audio.path.open("rb") as file:
        file.seek(span.start * 2)
        return file.read((span.end - span.start) * 2)


def encode(audio: DecodedAudio, span: AudioSpan, form: SpanForm) -> bytes:
    """The span as a file of that form. It blocks: call it in a thread.

    Raises:
        Unavailable: the extra `audio` is not installed.
    """
    sound = pcm(audio, span)
    if form == "wav":
        return _wav_header(SAMPLE_RATE, len(sound)) + sound
    made = BytesIO()  # the muxer goes back to write the length
    encoder = _Encoder(form, SAMPLE_RATE, made)
    for start in range(0, len(sound), _BLOCK):
        encoder.feed(sound[start : start + _BLOCK])
    encoder.end()
    return made.getvalue()


class StreamEncoder:
    """Speech as it is made: mono PCM, 16 bit little endian, goes in, and bytes of that form come out.

    A wav says that its length is unknown, as OpenAI's do. What is fed may be cut anywhere, inside of samples too.

    Raises:
        Unavailable: the extra `audio` is not installed (wav and pcm do without).
    """

    def __init__(self, form: SpeechForm, rate: int) -> None:
        self._out = _Pipe()
        self._encoder = None if form in ("wav", "pcm") else _Encoder(form, rate, self._out)
        if form == "wav":
            self._out.write(_wav_header(rate, _UNKNOWN))

    def feed(self, pcm: bytes) -> bytes:
        """What can be sent after this piece; often nothing."""
        if self._encoder is None:
            self._out.write(pcm)
        else:
            self._encoder.feed(pcm)
        return self._out.taken()

    def end(self) -> bytes:
        """The rest. Nothing may be fed after it."""
        if self._encoder is not None:
            self._encoder.end()
        return self._out.taken()


class _Pipe:
    """What PyAV writes to, and cannot go back in."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def taken(self) -> bytes:
        data = bytes(self._held)
        self._held.clear()
        return data


class _Encoder:
    def __init__(self, form: str, rate: int, out: Any) -> None:
        self._av = need("av")
        muxer, codec, rates, options, bits = _FORMS[form]
        self._rate = rate
        made = rate if not rates or rate in rates else min((r for r in rates if r >= rate), default=rates[-1])
        self._container = self._av.open(out, "w", format=muxer, container_options=options)
        self._container.flags |= self._av.container.Flags.flush_packets.value
        self._stream = self._container.add_stream(codec, rate=made, layout="mono")
        if bits is not None:
            self._stream.bit_rate = bits
        context = self._stream.codec_context
        self._container.start_encoding()
        self._resampler = self._av.AudioResampler(context.format, "mono", made, frame_size=context.frame_size or None)
        self._rest = b""

    def feed(self, pcm: bytes) -> None:
        pcm = self._rest + pcm
        whole = len(pcm) // 2 * 2
        pcm, self._rest = pcm[:whole], pcm[whole:]
        if not pcm:
            return
        frame: av.AudioFrame = self._av.AudioFrame("s16", "mono", samples=whole // 2)
        frame.sample_rate = self._rate
        frame.planes[0].update(pcm)
        self._write(frame)

    def end(self) -> None:
        self._write(None)
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def _write(self, frame: "av.AudioFrame | None") -> None:
        for part in self._resampler.resample(frame):
            self._container.mux(self._stream.encode(part))


def _wav_header(rate: int, length: int) -> bytes:
    def number(value: int, size: int = 4) -> bytes:
        return min(value, _UNKNOWN).to_bytes(size, "little")

    form = number(1, 2) + number(1, 2) + number(rate) + number(rate * 2) + number(2, 2) + number(16, 2)
    return b"RIFF" + number(length + 36) + b"WAVEfmt " + number(16) + form + b"data" + number(length)
