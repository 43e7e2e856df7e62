"""What goes out opens again, whole or as it is made, and is the same speech."""

from pathlib import Path
from typing import get_args

import pytest

from core.audio.decoding import decode
from core.audio.encoding import SpanForm, SpeechForm, StreamEncoder, encode, pcm
from core.audio.limits import AudioLimits
from domain.audio import SAMPLE_RATE, AudioInfo, AudioSpan, AudioUpload, DecodedAudio
from tests.fakes.speech import need_speech, spoken_pcm


@pytest.fixture(autouse=True)
def _speech() -> None:
    need_speech()


@pytest.fixture
def audio(tmp_path: Path) -> DecodedAudio:
    path = tmp_path / "speech"
    path.write_bytes(spoken_pcm())
    return DecodedAudio(path, AudioInfo("wav", "pcm_s16le", SAMPLE_RATE, 1, None), len(spoken_pcm()) // 2)


def opened(folder: Path, content: bytes) -> DecodedAudio:
    (folder / "made").write_bytes(content)
    return decode(AudioUpload(folder / "made", "x", len(content)), folder / "again", AudioLimits())


def loudness(content: bytes) -> float:
    import numpy

    return float(numpy.sqrt((numpy.frombuffer(content, dtype="<i2").astype(float) ** 2).mean()))


@pytest.mark.parametrize("form", get_args(SpanForm))
def test_a_span_is_a_file_of_its_own(tmp_path: Path, audio: DecodedAudio, form: SpanForm) -> None:
    span = AudioSpan(8_000, 32_000)
    again = opened(tmp_path, encode(audio, span, form))
    assert again.seconds == pytest.approx(span.seconds, abs=0.1)
    assert again.info.seconds == pytest.approx(span.seconds, abs=0.1)
    assert loudness(again.path.read_bytes()) == pytest.approx(loudness(pcm(audio, span)), rel=0.1)


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_lossless_span_is_the_very_same(tmp_path: Path, audio: DecodedAudio, form: SpanForm) -> None:
    span = AudioSpan(1_001, 30_003)
    assert opened(tmp_path, encode(audio, span, form)).path.read_bytes() == pcm(audio, span)


def test_the_pcm_of_a_span_is_that_part_of_the_file(audio: DecodedAudio) -> None:
    assert pcm(audio, AudioSpan(10, 20)) == spoken_pcm()[20:40]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("form", [form for form in get_args(SpeechForm) if form != "pcm"])
def test_a_stream_opens_again_at_every_rate(tmp_path: Path, form: SpeechForm, rate: int) -> None:
    sound = spoken_pcm()
    encoder = StreamEncoder(form, rate)
    pieces = [encoder.feed(sound[at : at + 3_333]) for at in range(0, len(sound), 3_333)]  # cut inside of samples
    again = opened(tmp_path, b"".join(pieces) + encoder.end())
    assert again.seconds == pytest.approx(len(sound) / 2 / rate, abs=0.25)
    assert loudness(again.path.read_bytes()) == pytest.approx(loudness(sound), rel=0.2)
    assert sum(bool(piece) for piece in pieces) >= 3, "it comes as it is made"


def test_pcm_goes_through_as_it_is() -> None:
    encoder = StreamEncoder("pcm", 24_000)
    assert encoder.feed(b"\1\2\3") + encoder.feed(b"\4") + encoder.end() == b"\1\2\3\4"


@pytest.mark.parametrize("form", get_args(SpeechForm))
def test_a_stream_of_nothing_ends(form: SpeechForm) -> None:
    encoder = StreamEncoder(form, 24_000)
    encoder.feed(b"")
    assert isinstance(encoder.end(), bytes)
