"""Whatever people send as sound, made into one thing: mono, 16 bit, 16 kHz, on disk. With `encoding`, PyAV's only room.

The decoder reads through a file object of ours: it never gets a path, can open nothing else (playlists, references to
other files), and comes to the end of its file when its time is over. Only the demuxer of the sniffed type and the
decoders of `_CODECS` are let in; pictures and films are never decoded. A file that is cut off, or damaged in places,
gives the sound that is there, as at OpenAI; less than a tenth of a second is refused.
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from core.audio.extras import need
from core.audio.limits import AudioLimits
from core.audio.sniffing import sniff
from core.audio.threads import stop_asked
from domain.audio import SAMPLE_RATE, AudioInfo, AudioUpload, DecodedAudio
from domain.errors import InvalidRequest, RouteurError, TooLarge, Unavailable, UnsupportedMedia

if TYPE_CHECKING:
    import av
    import av.container

_MPEG = frozenset({"mp3", "mp3float", "mp2", "mp2float"})
_PCM = frozenset({"pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw"})
#: The decoders that each container may ask for.
_CODECS = {
    "wav": _PCM | {"adpcm_ms", "adpcm_ima_wav"},
    "mp3": _MPEG,
    "mp4": _MPEG | {"aac", "alac", "flac", "opus"},
    "webm": frozenset({"opus", "vorbis"}),
    "ogg": frozenset({"opus", "vorbis", "flac"}),
    "flac": frozenset({"flac"}),
    "aac": frozenset({"aac"}),
}
_TAKEN = "wav, mp3, m4a, mp4, webm, ogg, opus, flac or aac"
_LEAST_SAMPLES = SAMPLE_RATE // 10
_BLOCK = 1 << 18
_DEFAULT_LIMITS = AudioLimits()


def probe(path: Path) -> AudioInfo:
    """What a file holds. It blocks: call it in a thread.

    Raises:
        RouteurError: as `decode`.
    """
    with _opened(path, _DEFAULT_LIMITS, _Watch(_DEFAULT_LIMITS.decode_seconds, stop_asked)) as (_, _, info):
        return info


def decode(
    upload: AudioUpload, target: Path, limits: AudioLimits, cancelled: Callable[[], bool] = stop_asked
) -> DecodedAudio:
    """The whole upload as PCM in `target`, which is gone again when that fails. It blocks: call it in a thread.

    Raises:
        InvalidRequest: it is empty, damaged, too short, or takes too long to decode.
        UnsupportedMedia: it is no sound that we read.
        TooLarge: it is more than `limits` take; known as soon as the bound is passed.
        Unavailable: the disk is full, the extra is not installed, or it was cancelled.
    """
    watch = _Watch(limits.decode_seconds, cancelled)
    try:
        if upload.path.stat().st_size > limits.max_bytes:
            raise TooLarge(f"The audio file is larger than {limits.max_bytes / 1e6:g} MB.", code="file_too_large")
        with _opened(upload.path, limits, watch) as (container, stream, info), target.open("wb", _BLOCK) as out:
            samples = _pour(container, stream, out, limits, watch)
        if samples < _LEAST_SAMPLES:
            raise _too_short() if samples else _damaged()
        return DecodedAudio(target, info, samples)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise _no_room(error) from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


class _Watch:
    """Tells when a decode has to end."""

    def __init__(self, seconds: float, cancelled: Callable[[], bool]) -> None:
        self._until = time.monotonic() + seconds
        self._cancelled = cancelled

    @property
    def over(self) -> bool:
        return self._cancelled() or time.monotonic() > self._until

    def check(self) -> None:
        if self._cancelled():
            raise Unavailable("The audio is no longer wanted.", code="audio_cancelled")
        if time.monotonic() > self._until:
            raise InvalidRequest("The audio file takes too long to decode.", code="audio_too_slow")


class _Source:
    """The file as PyAV reads it: it has no path, and it ends when time is over."""

    def __init__(self, file: BinaryIO, watch: _Watch) -> None:
        self._file = file
        self._watch = watch
        self.tell = file.tell
        self.seek = file.seek

    def read(self, size: int) -> bytes:
        return b"" if self._watch.over else self._file.read(size)


class _Mixer:
    """Frames of any kind in, PCM of ours out. Chained files change their rate and channels on the way."""

    def __init__(self, limits: AudioLimits) -> None:
        self._limits = limits
        self._kind: tuple[object, ...] = ()
        self._resampler: Any = None

    def feed(self, frame: "av.AudioFrame") -> bytes:
        kind = (frame.format.name, frame.layout.name, frame.layout.nb_channels, frame.sample_rate)
        rest = b""
        if kind != self._kind:
            _check_kind(frame.sample_rate, frame.layout.nb_channels, self._limits)
            rest = self.end()
            self._kind = kind
            self._resampler = need("av").AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        frame.pts = None  # holes in the time line are not filled: sound is what was recorded
        return rest + _bytes_of(self._resampler.resample(frame))

    def end(self) -> bytes:
        """What the resampler still holds."""
        return b"" if self._resampler is None else _bytes_of(self._resampler.resample(None))


def _bytes_of(frames: "list[av.AudioFrame]") -> bytes:
    return b"".join(bytes(frame.planes[0])[: frame.samples * 2] for frame in frames)


@contextmanager
def _opened(
    path: Path, limits: AudioLimits, watch: _Watch
) -> "Iterator[tuple[av.container.InputContainer, av.AudioStream, AudioInfo]]":
    av = need("av")
    if path.stat().st_size == 0:
        raise InvalidRequest("The audio file is empty.", code="empty_audio")
    form = sniff(path, max(200_000, int(limits.max_seconds * 100)))
    if form is None:
        raise UnsupportedMedia(f"The file is not audio that is read here: send {_TAKEN}.", code="unsupported_audio")
    with path.open("rb") as file:
        try:
            container = av.open(
                _Source(file, watch),
                "r",
                format=form,
                metadata_errors="ignore",
                buffer_size=1 << 16,
                io_open=_nothing_else,
                container_options={
                    "format_whitelist": "matroska,webm" if form == "webm" else form,
                    "codec_whitelist": ",".join(sorted(_CODECS[form])),
                    "protocol_whitelist": "file",
                    "max_streams": "64",
                },
            )
        except _of_the_decoder() as error:
            watch.check()
            raise _damaged() from error
        with container:
            watch.check()
            yield (container, *_sound_of(container, form, limits))


def _nothing_else(url: str, flags: int, options: dict[str, str]) -> object:
    raise PermissionError


def _sound_of(
    container: "av.container.InputContainer", form: str, limits: AudioLimits
) -> "tuple[av.AudioStream, AudioInfo]":
    """The first stream of sound."""
    stream = next(iter(container.streams.audio), None)
    codec: str | None = stream.codec_context.name if stream is not None and stream.codec_context is not None else None
    if stream is None or codec is None or codec not in _CODECS[form]:
        raise UnsupportedMedia(
            f"The file holds no sound in a codec that is read here: send {_TAKEN}.", code="unsupported_audio"
        )
    rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    _check_kind(rate, channels, limits)
    name = stream.codec_context.codec.canonical_name
    return stream, AudioInfo(form, name, rate, channels, _seconds_of(container, stream))


def _seconds_of(container: "av.container.InputContainer", stream: "av.AudioStream") -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / 1_000_000
    else:
        return None
    return seconds if seconds > 0 else None


def _check_kind(rate: int, channels: int, limits: AudioLimits) -> None:
    if not limits.min_rate <= rate <= limits.max_rate:
        raise UnsupportedMedia(
            f"The sample rate must be from {limits.min_rate} to {limits.max_rate} Hz.", code="unsupported_audio"
        )
    if not 1 <= channels <= limits.max_channels:
        raise UnsupportedMedia(f"The sound must have 1 to {limits.max_channels} channels.", code="unsupported_audio")


def _pour(
    container: "av.container.InputContainer",
    stream: "av.AudioStream",
    out: BinaryIO,
    limits: AudioLimits,
    watch: _Watch,
) -> int:
    """Decode into `out`; how many samples that were."""
    most, written = int(limits.max_seconds * SAMPLE_RATE), 0
    for pcm in _decoded(container, stream, limits, watch):
        written += len(pcm) // 2
        if written > most:
            raise TooLarge(f"The audio is longer than {limits.max_seconds:g} seconds.", code="audio_too_long")
        out.write(pcm)
    return written


def _decoded(
    container: "av.container.InputContainer", stream: "av.AudioStream", limits: AudioLimits, watch: _Watch
) -> Iterator[bytes]:
    """The sound, packet by packet. What cannot be decoded is passed over, until there is too much of it."""
    broken = _of_the_decoder()
    mixer, barren = _Mixer(limits), 0
    packets = container.demux(stream)
    while True:
        pcm = b""
        try:
            packet = next(packets, None)
            if packet is None:
                break
        except need(
            "av"
        ).error.PatchWelcomeError as error:  # an ogg whose second part has other channels or another rate
            raise UnsupportedMedia(
                "The file changes its kind of sound on the way: send its parts one by one.", code="unsupported_audio"
            ) from error
        except broken:  # cut off
            break
        finally:
            watch.check()
        try:
            pcm = b"".join([mixer.feed(frame) for frame in packet.decode()])
        except broken:
            pcm = b""
        barren = 0 if pcm else barren + 1
        if barren > limits.max_packets_without_samples:
            raise _damaged()
        yield pcm
    try:
        pcm = mixer.end()
    except broken:
        pcm = b""
    yield pcm


def _of_the_decoder() -> tuple[type[Exception], ...]:
    """What PyAV raises for a file that is not as it should be."""
    return (
        need("av").FFmpegError,
        ArithmeticError,
        EOFError,
        LookupError,
        MemoryError,
        NotImplementedError,
        ValueError,
    )


def _damaged() -> RouteurError:
    return InvalidRequest("The audio file is damaged: no sound could be read from it.", code="damaged_audio")


def _too_short() -> RouteurError:
    return InvalidRequest("The audio is shorter than 0.1 seconds.", code="audio_too_short")


def _no_room(error: OSError) -> RouteurError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Unavailable("There is no room to decode the audio now; try again.", code="storage_full", retry_after=60)
    return Unavailable("The audio file cannot be read or written now; try again.", code="storage_failed")
