"""A process of its own that listens with pocketsphinx: its library holds the interpreter for as long as it thinks.

Run as a file, with nothing of ours imported. Each line of its input is a job `{"path", "start", "end"}` (raw PCM, in
samples); each line of its output is the words `[[word, start, end], ...]`, in seconds from the start of the part.
It ends with its input.

With the argument `live` it listens while somebody speaks. Its input is four bytes of a length and so much PCM, any
number of times; a length of zero asks for the words since the last such question, a line of output as above;
0xFFFFFFFF forgets what was said since.
"""

import importlib
import json
import os
import re
import sys
from array import array
from collections.abc import Callable
from typing import Any, BinaryIO

RATE = 16_000
_SILENT = 64  # of 32,768: 54 dB under the loudest
_FORGET = 0xFFFFFFFF
_NICE_LIVE = 5  # somebody waits for an answer
_FRAMES = 100.0  # of a second
_VARIANT = re.compile(r"\(\d+\)$")  # how the dictionary numbers pronunciations
_NO_WORD = re.compile(r"^(<.*>|\[.*\]|\+\+.*\+\+)$")


def listen(decoder: Any, sound: bytes) -> list[tuple[str, float, float]]:
    """The words in `sound`. There are none in silence, whatever pocketsphinx makes of it."""
    if _peak(sound) < _SILENT:
        return []
    decoder.reinit_feat()  # what it learned from the last sound would change what it hears in this one
    decoder.start_utt()
    decoder.process_raw(sound, full_utt=True)
    decoder.end_utt()
    return _words(decoder)


def _words(decoder: Any) -> list[tuple[str, float, float]]:
    words = []
    for one in decoder.seg() or ():
        if not _NO_WORD.match(one.word):
            word = _VARIANT.sub("", one.word)
            words.append((word, one.start_frame / _FRAMES, (one.end_frame + 1) / _FRAMES))
    return words


def _peak(sound: bytes) -> int:
    samples = array("h", sound[: len(sound) // 2 * 2])
    return max(max(samples), -min(samples)) if samples else 0


def listen_live(decoder: Any, source: BinaryIO, answer: Callable[[Any], None]) -> None:
    """Listen to `source` until it ends."""
    peak, begun = 0, False
    while len(head := source.read(4)) == 4:
        size = int.from_bytes(head, "big")
        if size not in (0, _FORGET):
            sound = source.read(size)
            if not begun:
                decoder.reinit_feat()
                decoder.start_utt()
                begun = True
            decoder.process_raw(sound)
            peak = max(peak, _peak(sound))
            continue
        if begun:
            decoder.end_utt()
        if size == 0:
            answer(_words(decoder) if begun and peak >= _SILENT else [])
        peak, begun = 0, False


def main() -> None:
    """Listen until the input ends."""
    live = "live" in sys.argv[1:]
    os.nice(_NICE_LIVE if live else 19)  # who waits for the server goes first
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the library prints is no answer
    decoder = importlib.import_module("pocketsphinx").Decoder(samprate=RATE, loglevel="FATAL")

    def answer(told: Any) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    if live:
        listen_live(decoder, sys.stdin.buffer, answer)
        return
    for line in sys.stdin:
        job = json.loads(line)
        with open(job["path"], "rb") as file:  # noqa: PTH123 - pathlib is one import more
            file.seek(job["start"] * 2)
            sound = file.read((job["end"] - job["start"]) * 2)
        answer(listen(decoder, sound))


if __name__ == "__main__":
    main()
