"""Embeddings by hashing: the same everywhere, of length one, and close where words are shared."""

import asyncio
import math
import subprocess
import sys

import pytest

from services.feature_hashing import embed_ids, embed_text

pytestmark = pytest.mark.anyio

SCRIPT = (
    "import asyncio; from services.feature_hashing import embed_text; print(asyncio.run(embed_text('Été 日本', 16)))"
)


def closeness(left: list[float], right: list[float]) -> float:
    return sum(one * other for one, other in zip(left, right, strict=True))


async def vector(text: str, dimensions: int = 256) -> list[float]:
    return (await embed_text(text, dimensions))[0]


@pytest.mark.parametrize(
    ("text", "similar", "unrelated"),
    [
        ("The cat sat on the mat", "A cat was sitting on a mat", "Quarterly revenue grew by nine percent"),
        ("How do I reset my password?", "Resetting a password", "Opening hours of the museum"),
        ("Le contrat est résilié", "Résiliation du contrat", "Une recette de tarte aux pommes"),
        ("invoice 2024-001 unpaid", "unpaid invoices", "the weather is fine today"),
    ],
)
async def test_texts_that_share_words_are_closer_than_unrelated_ones(text: str, similar: str, unrelated: str) -> None:
    one, near, far = await vector(text), await vector(similar), await vector(unrelated)
    assert closeness(one, near) > closeness(one, far) + 0.15


def test_another_process_makes_the_same_vector() -> None:
    told = [subprocess.check_output([sys.executable, "-c", SCRIPT], text=True) for _ in range(2)]
    assert told[0] == told[1] == f"{asyncio.run(embed_text('Été 日本', 16))}\n"


@pytest.mark.parametrize("dimensions", [1, 2, 256, 4_096])
@pytest.mark.parametrize("text", ["word", " ", "?!", "x" * 1_000, "日本語の長い文章です", "a b c d e f g h"])
async def test_every_vector_has_length_one(text: str, dimensions: int) -> None:
    found = await vector(text, dimensions)
    assert len(found) == dimensions
    assert math.isclose(closeness(found, found), 1)


async def test_case_does_not_count_and_words_are_counted() -> None:
    assert await embed_text("Hello World", 64) == await embed_text("hello world", 64)
    assert (await embed_text("Hello, World!", 8))[1] == 4


async def test_token_ids_are_features_of_their_own() -> None:
    one, near, far = [(await embed_ids(ids, 256))[0] for ids in ([1, 2, 3, 4], [1, 2, 3, 9], [50, 60, 70, 80])]
    assert closeness(one, near) > 0.5 > closeness(one, far)
    assert (await embed_ids([7, 7], 8))[1] == 2
