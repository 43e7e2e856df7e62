"""Speech for tests, spoken by the program `flite` (Debian package of that name), and put into any form by PyAV."""

import functools
import os
import shutil
import subprocess
import tempfile
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import pytest

from services.realtime.voice import models

REQUIRED = bool(os.environ.get("ROUTEUR_REQUIRE_AUDIO"))
SENTENCE = "The quick brown fox jumps over the lazy dog."
RATE = 16_000


def need_speech() -> None:
    """Skip the test on a machine that cannot speak; where sound is required, fail it."""
    missing = [] if shutil.which("flite") else ["flite"]
    try:
        import av
        import numpy
        import webrtcvad
    except ImportError:
        missing.append("the extra audio")
    else:
        del av, numpy, webrtcvad
    _answer_for(missing)


def need_voice_models() -> None:
    """The same, for tests of the models that tell turns."""
    need_speech()
    _answer_for([] if models.installed() else ["the extra voice"])


def _answer_for(missing: list[str]) -> None:
    if missing and REQUIRED:
        pytest.fail(f"ROUTEUR_REQUIRE_AUDIO is set, and there is no {' and no '.join(missing)}")
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")


@functools.cache
def spoken(text: str = SENTENCE, voice: str = "slt") -> bytes:
    """A wav of somebody who says that: 16 kHz, mono, 16 bit."""
    need_speech()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(out)], check=True)
        return out.read_bytes()


def spoken_pcm(text: str = SENTENCE, voice: str = "slt") -> bytes:
    """The same as raw PCM."""
    wav = spoken(text, voice)
    return wav[wav.index(b"data") + 8 :]


def file_of(
    pcm: bytes,
    container: str,
    codec: str,
    *,
    rate: int = RATE,
    layout: str = "mono",
    cover: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """That sound (mono, `RATE`) as a file of that container and codec; `cover`: with a small film beside it."""
    import av

    out = BytesIO()
    with av.open(out, "w", format=container, container_options=options or {}) as made:
        film = made.add_stream("mpeg4", rate=Fraction(25)) if cover else None
        stream = made.add_stream(codec, rate=rate, layout=layout)
        if film is not None:
            film.width, film.height, film.pix_fmt = 64, 64, "yuv420p"
        context = stream.codec_context
        if codec == "vorbis":  # FFmpeg's own, which it holds for an experiment
            context.options = {"strict": "experimental"}
        made.start_encoding()
        if film is not None:
            made.mux(film.encode(av.VideoFrame(64, 64, "yuv420p")))
        resampler = av.AudioResampler(context.format, layout, rate, frame_size=context.frame_size or None)
        frame = av.AudioFrame("s16", "mono", samples=len(pcm) // 2)
        frame.sample_rate = RATE
        frame.planes[0].update(pcm)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            made.mux(stream.encode(part))
        made.mux([packet for packet in stream.encode(None) if packet.size])
        if film is not None:
            made.mux(film.encode(None))
    return out.getvalue()
