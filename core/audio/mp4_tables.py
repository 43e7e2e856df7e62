"""A look at an mp4 before a decoder opens it: a table of some bytes may claim billions of packets.

The decoder makes room for each packet that a table promises (`stsz`, `trun`), before it has seen one. So the promises
are read first, wherever they stand outside the sound itself.
"""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from domain.errors import InvalidRequest

_TABLES = re.compile(rb"stsz|stz2|trun|cmov")
_COUNT_AT = {b"stsz": 12, b"stz2": 12, b"trun": 8}  # from the name on


def check_tables(path: Path, max_packets: int) -> None:
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
                    raise InvalidRequest("The audio file is damaged: its tables cannot be right.", code="damaged_audio")


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
