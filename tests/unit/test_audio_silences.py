"""Long sound is cut where nobody speaks, and what is speech is found."""

import math
from itertools import pairwise
from pathlib import Path

import pytest

from core.audio.silences import speech_spans, split
from domain.audio import SAMPLE_RATE, AudioInfo, AudioSpan, DecodedAudio
from tests.fakes.speech import need_speech, spoken_pcm

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A gentle wind came in from the sea.",
    "Nobody in the village knew his name.",
    "She sells sea shells by the sea shore.",
)


@pytest.fixture(autouse=True)
def _speech() -> None:
    need_speech()


def audio_of(folder: Path, pcm: bytes) -> DecodedAudio:
    path = folder / "pcm"
    path.write_bytes(pcm)
    return DecodedAudio(path, AudioInfo("wav", "pcm_s16le", SAMPLE_RATE, 1, None), len(pcm) // 2)


def silence(seconds: float) -> bytes:
    return bytes(int(seconds * SAMPLE_RATE) * 2)


def voiced(pcm: bytes) -> tuple[int, int]:
    """From which sample to which one flite is heard; it puts silence around a sentence."""
    import numpy

    loud = numpy.flatnonzero(numpy.abs(numpy.frombuffer(pcm, dtype="<i2").astype(int)) > 300)
    return int(loud[0]), int(loud[-1]) + 1


def talk(pause: float, times: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Sentences with pauses between, and where each is spoken."""
    made, spoken_at = bytearray(), []
    for number in range(times):
        pcm = spoken_pcm(SENTENCES[number % len(SENTENCES)])
        first, last = voiced(pcm)
        spoken_at.append((len(made) // 2 + first, len(made) // 2 + last))
        made += pcm + silence(pause)
    return bytes(made), spoken_at


def is_a_cover(spans: list[AudioSpan], samples: int, longest: float) -> bool:
    """One after the other, all of it, none too long."""
    edges = [span.start for span in spans] + [spans[-1].end]
    return (
        edges[0] == 0
        and edges[-1] == samples
        and all(before.end == after.start for before, after in pairwise(spans))
        and all(0 < span.seconds <= longest for span in spans)
    )


@pytest.mark.parametrize("longest", [9.0, 12.0, 20.0])
def test_no_sentence_with_pauses_around_it_is_cut(tmp_path: Path, longest: float) -> None:
    pcm, sentences = talk(0.6, 12)
    audio = audio_of(tmp_path, pcm)
    spans = split(audio, longest)
    assert len(spans) > 1
    assert is_a_cover(spans, audio.samples, longest)
    cuts = [span.end for span in spans[:-1]]
    assert not [cut for cut in cuts for start, end in sentences if start < cut < end]


def test_the_longest_pause_near_the_end_is_taken_in_its_middle(tmp_path: Path) -> None:
    speech = spoken_pcm()
    first, last = voiced(speech)
    word = speech[first * 2 : last * 2]
    audio = audio_of(tmp_path, word + silence(0.4) + word + silence(1.2) + word)
    cut = split(audio, audio.seconds - 1)[0].end / SAMPLE_RATE
    start = 2 * len(word) / 2 / SAMPLE_RATE + 0.4
    assert start + 0.4 < cut < start + 1.1


def test_without_a_pause_the_quietest_moment_is_cut(tmp_path: Path) -> None:
    import numpy

    # A buzz, as of a voice that never pauses, that grows weak at second 8.5.
    time = numpy.arange(12 * SAMPLE_RATE) / SAMPLE_RATE
    buzz = sum(numpy.sin(2 * math.pi * 140 * harmonic * time) / harmonic for harmonic in range(1, 20))
    loudness = 1 - 0.6 * numpy.exp(-(((time - 8.5) / 0.1) ** 2))
    audio = audio_of(tmp_path, (buzz * loudness * 6_000).astype("<i2").tobytes())
    assert split(audio, 10)[0].end / SAMPLE_RATE == pytest.approx(8.5, abs=0.15)


def test_silence_is_covered_too(tmp_path: Path) -> None:
    audio = audio_of(tmp_path, silence(100.5))
    assert is_a_cover(split(audio, 30), audio.samples, 30)
    assert speech_spans(audio) == []


def test_what_is_short_stays_whole(tmp_path: Path) -> None:
    audio = audio_of(tmp_path, spoken_pcm())
    assert split(audio, 30) == [AudioSpan(0, audio.samples)]


def test_nothing_has_no_spans(tmp_path: Path) -> None:
    assert split(audio_of(tmp_path, b""), 30) == []
    assert speech_spans(audio_of(tmp_path, b"")) == []


@pytest.mark.parametrize("seconds", [10.0, 10.01, 10.5, 19.99, 20.0, 20.3])
def test_no_span_is_shorter_than_asked(tmp_path: Path, seconds: float) -> None:
    audio = audio_of(tmp_path, (spoken_pcm() * 8)[: int(seconds * SAMPLE_RATE) * 2])
    spans = split(audio, 10, shortest=1)
    assert is_a_cover(spans, audio.samples, 10)
    assert all(span.seconds >= 1 for span in spans)


def test_bounds_that_cannot_be_met_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        split(audio_of(tmp_path, b""), 1.5)


def test_speech_is_found_between_silences_with_some_air_around(tmp_path: Path) -> None:
    pcm, sentences = talk(2.0, 3)
    audio = audio_of(tmp_path, silence(1) + pcm)
    spans = speech_spans(audio)
    assert len(spans) == 3
    for span, (start, end) in zip(spans, sentences, strict=True):
        assert span.start <= start + SAMPLE_RATE <= span.start + SAMPLE_RATE // 2
        assert span.end - SAMPLE_RATE * 3 // 4 <= end + SAMPLE_RATE <= span.end


def test_a_short_pause_is_part_of_speech(tmp_path: Path) -> None:
    first, last = voiced(spoken_pcm())
    word = spoken_pcm()[first * 2 : last * 2]
    assert len(speech_spans(audio_of(tmp_path, word + silence(0.25) + word))) == 1
    assert len(speech_spans(audio_of(tmp_path, word + silence(1.5) + word))) == 2
