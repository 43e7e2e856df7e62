"""How well something was heard: word errors, and files whose times are known."""

import re
from dataclasses import dataclass

import numpy

from tests.fakes.speech import RATE, spoken_pcm

SENTENCES = (
    "The weather is very nice today and we will go to the park.",
    "My brother lives in a small house near the river.",
    "Can you tell me the way to the train station.",
    "We need to finish this work before the end of the week.",
)
#: A container, a codec, the rate, and how such files are called.
CONTAINERS = {
    "wav": ("wav", "pcm_s16le", 16_000),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "m4a": ("ipod", "aac", 44_100),
    "mp4": ("mp4", "aac", 48_000),
    "webm": ("webm", "libopus", 48_000),
    "ogg": ("ogg", "vorbis", 44_100),
    "opus": ("ogg", "libopus", 48_000),
    "flac": ("flac", "flac", 22_050),
}


@dataclass(frozen=True)
class Told:
    """A sentence of a file, and when it is said."""

    text: str
    start: float
    end: float


def recording(
    sentences: tuple[str, ...] = SENTENCES, pause: float = 1.0, voice: str = "rms"
) -> tuple[bytes, list[Told]]:
    """The sentences as PCM, silence between them, and the truth about their times."""
    silence, pcm, told = b"\0\0" * int(pause * RATE), b"", []
    for sentence in sentences:
        said = numpy.frombuffer(spoken_pcm(sentence, voice), numpy.int16)
        loud = numpy.flatnonzero(numpy.abs(said.astype(int)) > 300)
        began = len(pcm) / 2 / RATE
        told.append(Told(sentence, began + loud[0] / RATE, began + loud[-1] / RATE))
        pcm += said.tobytes() + silence
    return pcm, told


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def accuracy(truth: str, heard: str) -> float:
    """One minus the word error rate: the least number of words changed, added and left out."""
    wanted, found = words_of(truth), words_of(heard)
    row = list(range(len(found) + 1))
    for place, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], place
        for other, one in enumerate(found, 1):
            diagonal, row[other] = row[other], min(row[other] + 1, row[other - 1] + 1, diagonal + (word != one))
    return 1 - row[-1] / len(wanted)
