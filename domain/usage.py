"""What a model call cost, in tokens and money. Unknown is not zero: `None` says that nobody told us."""

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, NonNegativeInt


class Usage(BaseModel):
    """Tokens of one or more model calls.

    `cached_tokens` and `audio_tokens` are parts of `input_tokens`; `reasoning_tokens` is a part of `output_tokens`.
    A part that the provider did not report is None. `estimated` says that we counted where a provider was cut before it
    could tell (see `estimate`); it is not the provider's word.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_tokens: NonNegativeInt = 0
    output_tokens: NonNegativeInt = 0
    total_tokens: NonNegativeInt = 0
    cached_tokens: NonNegativeInt | None = None
    reasoning_tokens: NonNegativeInt | None = None
    audio_tokens: NonNegativeInt | None = None
    estimated: bool = False

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            cached_tokens=_add(self.cached_tokens, other.cached_tokens),
            reasoning_tokens=_add(self.reasoning_tokens, other.reasoning_tokens),
            audio_tokens=_add(self.audio_tokens, other.audio_tokens),
            estimated=self.estimated or other.estimated,
        )


class Price(BaseModel):
    """US dollars per million tokens. Zero is a price; a model without a price has no `Price`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None

    def cost(self, usage: Usage) -> Decimal:
        """Dollars for `usage`; cached input is charged at its own rate where there is one."""
        cached = usage.cached_tokens or 0 if self.cached_input is not None else 0
        fresh = usage.input_tokens - cached
        dollars = fresh * self.input + usage.output_tokens * self.output
        if self.cached_input is not None:
            dollars += cached * self.cached_input
        return dollars / 1_000_000


MOST_TOKENS = 2**53  # a larger count is no count: no store, and no JSON reader, would hold it

PICO = 10**12  # parts of a dollar; a price of millionths of a dollar per million tokens is still whole


def to_pico(dollars: Decimal) -> int:
    """A cost as stored: whole picodollars, exact on every engine."""
    return int((dollars * PICO).to_integral_value())


def from_pico(stored: int | None) -> Decimal | None:
    """A stored cost in dollars; None stays unknown."""
    return None if stored is None else Decimal(stored) / PICO


def _add(left: int | None, right: int | None) -> int | None:
    if left is None:
        return right
    return left if right is None else left + right
