"""G.711, the sound of telephones: 8,000 samples a second, a byte each, by mu-law or by A-law. No library needed."""

from array import array
from functools import cache
from itertools import pairwise
from sys import byteorder
from typing import Literal

RATE = 8_000
Law = Literal["mu", "a"]
_BIAS = 0x84


def decode(coded: bytes, law: Law) -> bytes:
    """As PCM: 16 bit, little endian."""
    low, high = _decoding(law)
    pcm = bytearray(2 * len(coded))
    pcm[0::2], pcm[1::2] = coded.translate(low), coded.translate(high)
    return bytes(pcm)


def encode(pcm: bytes, law: Law) -> bytes:
    """From PCM of 16 bit, little endian, in whole samples."""
    samples = array("H", pcm)
    if byteorder == "big":
        samples.byteswap()
    return bytes(map(_encoding(law).__getitem__, samples))


@cache
def _decoding(law: Law) -> tuple[bytes, bytes]:
    """For each byte of the code the two of its sample."""
    values = [_value(code, law) & 0xFFFF for code in range(256)]
    return bytes(value & 0xFF for value in values), bytes(value >> 8 for value in values)


@cache
def _encoding(law: Law) -> bytes:
    """For each sample, by its 16 bits, the code that is nearest."""
    known = {_value(code, law): code for code in range(256)}
    values = sorted(known)
    bounds = [-32_768, *((below + above + 1) // 2 for below, above in pairwise(values)), 32_768]
    signed = b"".join(
        bytes([known[value]]) * (end - start) for value, (start, end) in zip(values, pairwise(bounds), strict=True)
    )
    return signed[32_768:] + signed[:32_768]


def _value(code: int, law: Law) -> int:
    if law == "mu":
        code ^= 0xFF
        size = ((((code & 0x0F) << 3) + _BIAS) << ((code >> 4) & 7)) - _BIAS
        return -size if code & 0x80 else size
    code ^= 0x55
    shift, size = (code >> 4) & 7, ((code & 0x0F) << 4) + 8
    if shift:
        size = (size + 0x100) << (shift - 1)
    return size if code & 0x80 else -size
