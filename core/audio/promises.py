"""A look at a file before a decoder opens it: some bytes of it may promise billions.

The decoder makes room for what is promised before it has seen any of it: for each packet of an mp4 (`stsz`, `trun`:
2.4 GB for a file of 18 kB), for a note in a wav (`LIST`: 1.2 GB). So the promises are read first.
"""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from domain.errors import InvalidRequest

_TABLES = re.compile(rb"stsz|stz2|trun|cmov")
_MAX_CHUNKS = 10_000
_UNKNOWN = 0xFFFF_FFFF
_COUNT_AT = {b"stsz": 12, b"stz2": 12, b"trun": 8}  # from the name on


def check_mp4(path: Path, max_packets: int) -> None:
    """Nothing, if the tables together promise at most `max_packets`.

    Raises:
        InvalidRequest: they promise more, or are packed so that we cannot see.
    """
    promised = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for start, end in _outside_the_sound(content):
            for table in _TABLES.finditer(content, start, end):
                name = table.group()
                at = table.start() + _COUNT_AT.get(name, 0)
                promised += int.from_bytes(content[at : at + 4], "big") if name != b"cmov" else max_packets + 1
                if promised > max_packets:
                    raise _empty_promise()


def check_wav(path: Path) -> None:
    """Nothing, if no chunk but the sound (a live recording does not know its length) is larger than the file.

    Raises:
        InvalidRequest: one is, or there are too many to look at.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        wide, at, sound = file.read(4) == b"RF64", 12, 0
        for _ in range(_MAX_CHUNKS):
            file.seek(at)
            head = file.read(24)
            if len(head) < 8:
                return
            name, length = head[:4], int.from_bytes(head[4:8], "little")
            if name == b"ds64":
                sound = int.from_bytes(head[16:24], "little")
            if name == b"data" and not wide and length in (0, _UNKNOWN):
                return  # all the rest is sound
            if name == b"data":
                length = sound if wide else length
            elif length > size:
                raise _empty_promise()
            at += 8 + length + length % 2
    raise _empty_promise()


def _outside_the_sound(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """From where to where each box of the outermost row goes, but `mdat`, which holds no boxes."""
    at, total = 0, len(content)
    while at + 8 <= total:
        size, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if size == 1 and at + 16 <= total:
            size = int.from_bytes(content[at + 8 : at + 16], "big")
        end = min(at + size, total) if size >= 8 else total
        if name != b"mdat":
            yield at, end
        at = end


def _empty_promise() -> InvalidRequest:
    return InvalidRequest("The audio file is damaged: it cannot hold what its head promises.", code="damaged_audio")
