"""A provider's vectors: put in order, checked, and turned into what the caller wants.

A large answer is three million numbers. Whatever touches all of them is done a slice at a time, so that nobody else
waits for it.
"""

import asyncio
import binascii
import math
import struct
from collections.abc import Sequence
from typing import Any

from domain.embeddings import Vector

_SLICE = 50_000  # numbers between two turns of the loop: about a millisecond
_FLOAT32 = 4  # bytes


class Unfit(ValueError):
    """What a provider sent is not one vector for each input. Its text is for our log."""


def in_order(data: Any, count: int) -> list[Any]:
    """The vectors of a `data` list by their index; entries without one are taken as they come.

    Raises:
        Unfit: there is not exactly one for each of `count` inputs.
    """
    if not isinstance(data, list):
        raise Unfit("embeddings without data")
    if len(data) != count:
        raise Unfit(f"{len(data)} embeddings for {count} inputs")
    found: list[Any] = [None] * count
    for place, entry in enumerate(data):
        if not isinstance(entry, dict):
            raise Unfit("an embedding that is not an object")
        index = entry.get("index", place)
        if type(index) is not int or not 0 <= index < count or found[index] is not None:
            raise Unfit("embeddings whose indexes are not those of the inputs")
        found[index] = entry.get("embedding")
        if not found[index]:
            raise Unfit("an empty embedding")
    return found


def size_of(vectors: list[Any]) -> int:
    """How many numbers each vector has. Encoded ones are measured, not decoded.

    Raises:
        Unfit: they are not vectors, or not all of one size and kind.
    """
    first = vectors[0]
    kind, length = type(first), len(first) if isinstance(first, list | str) else 0
    if not length or any(type(vector) is not kind or len(vector) != length for vector in vectors):
        raise Unfit("embeddings that are no vectors, or not all of one size")
    if kind is list:
        return length
    padding = {vector.count("=", -2) if vector.isascii() else -1 for vector in vectors}
    size = length // 4 * 3 - min(padding)
    if len(padding) != 1 or min(padding) < 0 or length % 4 or size % _FLOAT32:
        raise Unfit("embeddings that are not the base64 of whole float32 numbers")
    return size // _FLOAT32


async def converted(vectors: list[Any], size: int, *, base64: bool) -> list[Vector]:
    """Vectors of `size` numbers as numbers, or encoded.

    What is encoded already, and wanted so, is handed on; of that, only the first is looked into.

    Raises:
        Unfit: something in them is not a finite number.
    """
    encoded = isinstance(vectors[0], str)
    layout = struct.Struct(f"<{size}f")
    turns = max(1, _SLICE // size)
    found: list[Vector] = []
    try:
        if encoded and base64:
            _numbers(layout, vectors[0])
            return vectors
        for number, vector in enumerate(vectors, 1):
            numbers = _numbers(layout, vector)
            found.append(_encode(layout, numbers) if base64 else list(numbers))
            if number % turns == 0:
                await asyncio.sleep(0)
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise error if isinstance(error, Unfit) else Unfit(f"embeddings that hold no numbers: {error}") from error
    return found


def _numbers(layout: struct.Struct, vector: list[float] | str) -> Sequence[float]:
    numbers = layout.unpack(binascii.a2b_base64(vector, strict_mode=True)) if isinstance(vector, str) else vector
    if not math.isfinite(sum(numbers)):
        raise Unfit("embeddings with numbers that are not finite")
    return numbers


def _encode(layout: struct.Struct, numbers: Sequence[float]) -> str:
    return binascii.b2a_base64(layout.pack(*numbers), newline=False).decode()
