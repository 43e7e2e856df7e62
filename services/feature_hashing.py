"""Embeddings without a model: words, and the letters in them, hashed into a vector (the signed hashing trick).

Texts that share words, or parts of words, come out close; what words mean is not known here. The hash is BLAKE2, so
that a vector is the same in every process, today and tomorrow.
"""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b

DIMENSIONS, MAX_DIMENSIONS = 256, 4_096
_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORD_CHARS = 64  # longer words (or a language without spaces) are taken in pieces of that many letters
_GRAM = 3  # letters of a part of a word, its edges marked
_GRAM_WEIGHT = 0.5  # of all parts of a word together, the word itself being 1
_TURN = 2_000  # tokens or features between two turns of the loop: a few milliseconds

Feature = tuple[int, float]  # 64 hashed bits, and how much it counts


async def embed_text(text: str, dimensions: int) -> tuple[list[float], int]:
    """A vector of length one, and how many words and signs were counted."""
    words: Counter[str] = Counter()
    tokens = 0
    for tokens, found in enumerate(_TOKEN.finditer(text), 1):
        words.update(_pieces(found.group().lower()))
        if tokens % _TURN == 0:
            await asyncio.sleep(0)
    vector = [0.0] * dimensions
    added = 0
    for word, count in words.items():
        features = _features(word)
        for bits, weight in features:
            _add(vector, bits, weight * math.sqrt(count))
        added += len(features)
        if added > _TURN:
            added = 0
            await asyncio.sleep(0)
    return _normalised(vector, text[:_WORD_CHARS]), tokens


async def embed_ids(ids: Sequence[int], dimensions: int) -> tuple[list[float], int]:
    """The same for token ids, each of them a feature."""
    vector = [0.0] * dimensions
    for number, (token, count) in enumerate(Counter(ids).items(), 1):
        _add(vector, _hashed(f"id {token}"), math.sqrt(count))
        if number % _TURN == 0:
            await asyncio.sleep(0)
    return _normalised(vector, f"ids {ids[0]}"), len(ids)


def _pieces(word: str) -> Iterator[str]:
    for start in range(0, len(word), _WORD_CHARS):
        yield word[start : start + _WORD_CHARS]


@lru_cache(maxsize=20_000)
def _features(word: str) -> tuple[Feature, ...]:
    edged = f"<{word}>"
    grams = [edged[place : place + _GRAM] for place in range(len(edged) - _GRAM + 1)]
    weight = _GRAM_WEIGHT / math.sqrt(len(grams))
    return ((_hashed(f"word {word}"), 1.0), *((_hashed(f"gram {gram}"), weight) for gram in grams))


@lru_cache(maxsize=50_000)
def _hashed(feature: str) -> int:
    return int.from_bytes(blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _add(vector: list[float], bits: int, weight: float) -> None:
    """The lowest bit is the sign: what falls on one place by chance cancels out on the average."""
    vector[(bits >> 1) % len(vector)] += weight if bits & 1 else -weight


def _normalised(vector: list[float], instead: str) -> list[float]:
    """At length one. What has no features, or only some that cancel out, is one feature of its own."""
    length = math.sqrt(sum(number * number for number in vector))
    if length < 1e-9:
        vector = [0.0] * len(vector)
        _add(vector, _hashed(f"nothing {instead}"), 1.0)
        return vector
    return [number / length for number in vector]
