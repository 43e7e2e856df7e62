"""What the fake provider says: all of it follows from the name of the model, so that every answer can be checked.

`bench-20` says 20 tokens. After the number: `-burst` (the default) puts the frames into a few large writes, `-frames`
gives each frame a write of its own, one right after the other, and `-20ms` waits 20 ms between two of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

MAX_TOKENS = 10_000  # about 2 MB of frames
MAX_SPACING_MS = 600_000
PROMPT_TOKENS = 7  # whatever was asked
FIRST_WORD = b"w0 "  # stands in the first piece of text, whatever dialect carries it
WRITE_BYTES = 16_384  # of a large write: what one TLS record holds

_NAME = re.compile(r"bench-(\d{1,5})(?:-(burst|frames|(\d{1,6})ms))?")
_CREATED = 1_700_000_000

Pace = Literal["burst", "frames", "spaced"]


@dataclass(frozen=True, slots=True)
class Speech:
    """`tokens` words at a `pace`; `spacing` is in seconds and only counts when the pace is `spaced`."""

    model: str
    tokens: int
    pace: Pace = "burst"
    spacing: float = 0.0

    @property
    def text(self) -> str:
        """The whole answer: every word is different, so that loss and disorder show."""
        return "".join(self.words())

    def words(self) -> Iterator[str]:
        """The tokens, in order."""
        return (f"w{number} " for number in range(self.tokens))

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI counts."""
        return {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": self.tokens,
            "total_tokens": PROMPT_TOKENS + self.tokens,
        }

    def whole(self) -> bytes:
        """The unstreamed answer: a JSON object."""
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return orjson.dumps(self._object("chat.completion", [choice]) | {"usage": self.usage})

    def frames(self, usage: bool) -> list[bytes]:
        """The server-sent events of the streamed answer: role, each token, the end, usage when asked for, `[DONE]`."""
        frames = [self._chunk({"role": "assistant", "content": ""})]
        frames += [self._chunk({"content": word}) for word in self.words()]
        frames.append(self._chunk({}, "stop"))
        if usage:
            frames.append(_event(self._object("chat.completion.chunk", []) | {"usage": self.usage}))
        return [*frames, b"data: [DONE]\n\n"]

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event(self._object("chat.completion.chunk", [choice]))

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": "chatcmpl-bench0123456789abcdefghij",  # as long as a real one
            "object": kind,
            "created": _CREATED,
            "model": self.model,
            "system_fingerprint": "fp_bench",
            "choices": choices,
        }


def speech_of(model: str) -> Speech | None:
    """What the model of that name says; None when there is no such model."""
    match = _NAME.fullmatch(model)
    if match is None:
        return None
    tokens, milliseconds = int(match[1]), int(match[3] or 0)
    if not 1 <= tokens <= MAX_TOKENS or milliseconds > MAX_SPACING_MS:
        return None
    if match[3] is not None:
        return Speech(model, tokens, "spaced", milliseconds / 1000)
    return Speech(model, tokens, "frames" if match[2] == "frames" else "burst")


def in_http_chunks(frames: list[bytes]) -> list[bytes]:
    """Each frame as one chunk of a chunked body, which the last one also ends."""
    chunks = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames]
    chunks[-1] += b"0\r\n\r\n"
    return chunks


def in_writes(pace: Pace, chunks: list[bytes]) -> list[bytes]:
    """What is handed to the socket at once. The role and the first token always travel together."""
    if pace != "burst":
        return [b"".join(chunks[:2]), *chunks[2:]]
    whole = b"".join(chunks)
    return [whole[start : start + WRITE_BYTES] for start in range(0, len(whole), WRITE_BYTES)]


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
