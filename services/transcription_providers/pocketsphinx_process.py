"""A process of its own that listens with pocketsphinx: its library holds the interpreter for as long as it thinks.

Run as a file, with nothing of ours imported. Each line of its input is a job `{"path", "start", "end"}` (raw PCM, in
samples); each line of its output is the words `[[word, start, end], ...]`, in seconds from the start of the part.
It ends with its input.
"""

import importlib
import json
import os
import re
import sys
from array import array
from typing import Any

RATE = 16_000
_SILENT = 64  # of 32,768: 54 dB under the loudest
_FRAMES = 100.0  # of a second
_VARIANT = re.compile(r"\(\d+\)$")  # how the dictionary numbers pronunciations
_NO_WORD = re.compile(r"^(<.*>|\[.*\]|\+\+.*\+\+)$")


def listen(decoder: Any, sound: bytes) -> list[tuple[str, float, float]]:
    """The words in `sound`. There are none in silence, whatever pocketsphinx makes of it."""
    samples = array("h", sound[: len(sound) // 2 * 2])
    if not samples or max(max(samples), -min(samples)) < _SILENT:
        return []
    decoder.reinit_feat()  # what it learned from the last sound would change what it hears in this one
    decoder.start_utt()
    decoder.process_raw(sound, full_utt=True)
    decoder.end_utt()
    words = []
    for one in decoder.seg() or ():
        if not _NO_WORD.match(one.word):
            word = _VARIANT.sub("", one.word)
            words.append((word, one.start_frame / _FRAMES, (one.end_frame + 1) / _FRAMES))
    return words


def main() -> None:
    """Listen until the input ends."""
    os.nice(19)  # who waits for the server goes first
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the library prints is no answer
    decoder = importlib.import_module("pocketsphinx").Decoder(samprate=RATE, loglevel="FATAL")
    for line in sys.stdin:
        job = json.loads(line)
        with open(job["path"], "rb") as file:  # noqa: PTH123 - pathlib is one import more
            file.seek(job["start"] * 2)
            sound = file.read((job["end"] - job["start"]) * 2)
        answers.write(json.dumps(listen(decoder, sound)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
