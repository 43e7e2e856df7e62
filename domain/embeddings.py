"""Embeddings: texts, or the token ids of texts, in; one vector for each out."""

from dataclasses import dataclass
from typing import TypeAlias

from domain.usage import Usage

#: What OpenAI documents for one request, and what its clients cut their batches by.
MAX_INPUTS = 2_048
MAX_TOKENS = 300_000
#: Texts are not tokenized here. More than six characters for each token is no text that any model would take.
MAX_CHARS = 6 * MAX_TOKENS
MAX_DIMENSIONS = 65_536
_CHARS_PER_TOKEN = 4  # OpenAI's own rule of thumb

Texts: TypeAlias = list[str]
TokenIds: TypeAlias = list[list[int]]
#: A vector as numbers, or as the base64 of little-endian float32.
Vector: TypeAlias = list[float] | str


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """What shall be embedded. `base64`: the vectors are wanted encoded; `dimensions` None: as many as the model has."""

    model: str
    inputs: Texts | TokenIds
    dimensions: int | None = None
    base64: bool = False

    @property
    def has_token_ids(self) -> bool:
        """Token ids, not texts."""
        return not isinstance(self.inputs[0], str)

    def estimated_tokens(self) -> int:
        """About how many tokens these are, for when nobody says; ids are counted."""
        size = sum(map(len, self.inputs))
        return size if self.has_token_ids else -(-size // _CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Embedded:
    """A provider's answer, unchecked but for its being JSON. `usage` None: it did not say."""

    data: object
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input, in their order. `model` (`provider/name`) is what made them."""

    model: str
    vectors: list[Vector]
    usage: Usage | None
