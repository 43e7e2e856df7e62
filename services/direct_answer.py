"""What a provider answers to a direct call: handed on frame by frame as it came, mended only where it must be.

Every frame is read, so that nothing unreadable is handed on; bytes are made anew only for what OpenAI's clients do not
understand: other words for the end, content in parts, usage in odd places. Frames that differ in their words only (most
do) are read together: their form is proven once, and then only the words are parsed.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from core.http import ProviderClient
from domain.errors import RouteurError
from services.llm_providers.wire.answer import Answer
from services.llm_providers.wire.openai_wire import read_message, read_usage

_FINISHES = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_DONE = b"data: [DONE]\n\n"
_DATA, _FRAME_END = b"data: ", b"\n\n"
_LESSONS = 8  # how often a stream's form is learnt anew before it is taken to have none
_LEARN_WITHIN = 4  # frames of the first read that are looked at one by one
_CONTENT = re.compile(rb'"content":\s*"((?:[^"\\]|\\.)*)"')
_PROBE = "the words"


class Block:
    """Frames that came together, as bytes and (read when asked for) as what they say."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, data: bytes) -> None:
        """One more frame."""
        self._pieces.append(_DATA + data + _FRAME_END)

    def add_frames(self, frames: bytes) -> None:
        """Whole frames as they came."""
        self._pieces.append(frames)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the frames say."""
        frames = b"".join(self._pieces).split(_FRAME_END)[:-1]
        events: list[dict[str, Any]] = orjson.loads(b"[" + b",".join(frame[len(_DATA) :] for frame in frames) + b"]")
        return events

    def sse(self) -> bytes:
        """As server-sent events."""
        return b"".join(self._pieces)


class Ending(Block):
    """The last frames; there is no more."""

    __slots__ = ()

    def sse(self) -> bytes:
        """As server-sent events, with the word that ends the stream."""
        return super().sse() + _DONE


class _Mould:
    """The form of a stream's frames: all but the words in them is the same, byte for byte.

    What comes out of it is proven to be readable, for all frames with one call, and split by one more.
    """

    __slots__ = ("_after", "_between", "_head", "_one_end")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._head = _DATA + before
        self._after = after
        self._one_end = after + _FRAME_END
        self._between = after + _FRAME_END + self._head

    @classmethod
    def of(cls, data: bytes, event: dict[str, Any]) -> "_Mould | None":
        """The form of a frame that adds a piece of text; None: it cannot be told."""
        found = _CONTENT.search(data)
        if found is None:
            return None
        before, after = data[: found.start(1)], data[found.end(1) :]
        # Other words in that place must come out as the content, and change nothing else.
        tried = orjson.loads(before + _PROBE.encode() + after)
        delta = tried["choices"][0]["delta"]
        if delta["content"] != _PROBE:
            return None
        delta["content"] = event["choices"][0]["delta"]["content"]
        return cls(before, after) if tried == event else None

    def read(self, raw: bytes) -> tuple[list[str], int]:
        """The words of the frames of this form that `raw` begins with, and where the last of them ends."""
        head, after = self._head, self._after
        if not raw.startswith(head):
            return [], 0
        if raw.endswith(self._one_end) and b"\n" not in (word := raw[len(head) : -len(self._one_end)]):
            return self._read_one(word), len(raw) - len(_FRAME_END)
        frames = raw.split(b"\n")[::2]  # twice as fast as by two line ends
        while frames and not (frames[-1].startswith(head) and frames[-1].endswith(after)):
            frames.pop()
        start, end = len(head), -len(after)
        words = [frame[start:end] for frame in frames]
        alike = head + self._between.join(words) + after
        if not raw.startswith(alike):  # one among them is not
            words = words[: self._until_another(frames)]
            alike = head + self._between.join(words) + after
        joined = b'","'.join(words)
        # a backslash at the end of one may hide where the next begins
        if not (words and raw.startswith(alike)) or b'\\","' in joined:
            return [], 0
        try:
            texts: list[str] = orjson.loads(b'["' + joined + b'"]')
        except orjson.JSONDecodeError:
            return [], 0
        return (texts, len(alike)) if len(texts) == len(words) else ([], 0)

    @staticmethod
    def _read_one(word: bytes) -> list[str]:
        try:
            return [orjson.loads(b'"' + word + b'"')]
        except orjson.JSONDecodeError:
            return []

    def _until_another(self, frames: list[bytes]) -> int:
        head, after = self._head, self._after
        shortest = len(head) + len(after)
        for place, frame in enumerate(frames):
            if len(frame) < shortest or not (frame.startswith(head) and frame.endswith(after)):
                return place
        return len(frames)


class DirectAnswer(Answer):
    """Grows with each read. `failure`: what came after the last good frame; raise it when those are told.

    Args:
        asked: the caller's body.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        super().__init__()
        self.failure: RouteurError | None = None
        options = asked.get("stream_options") or {}
        self._usage_wanted = bool(options.get("include_usage"))
        self._choices = asked.get("n") or 1
        self._finished: set[int] = set()
        self._last = Ending()  # held back until everything is written down
        self._usage: Any = None
        self._head: dict[str, Any] = {}
        self._mould: _Mould | None = None
        self._lessons = _LESSONS

    # -- a stream --

    def read(self, client: ProviderClient, raw: bytes) -> Block:
        """What can be handed on of these lines."""
        block = Block()
        if raw[:1] == b"\n":
            raw = raw.lstrip(b"\n")
        if self._mould is None and self._lessons == _LESSONS:
            raw = self._read_first(client, raw, block)
        if self._mould is not None and self.finish is None and self.failure is None:
            texts, end = self._mould.read(raw)
            if texts:
                self.texts += texts
                block.add_frames(raw[:end] + _FRAME_END)
                raw = raw[end:].lstrip(b"\n") if len(raw) > end + len(_FRAME_END) else b""
        if raw and self.failure is None and not self.done:
            self._read_lines(client, raw.splitlines(), block)
        return block

    def _read_first(self, client: ProviderClient, raw: bytes, block: Block) -> bytes:
        """Read frames up to the one that shows the form of the stream; gives the rest."""
        at = 0
        for _ in range(_LEARN_WITHIN):
            end = raw.find(_FRAME_END, at)
            if end < 0 or self._mould is not None or self.failure is not None or self.done:
                break
            self._read_lines(client, raw[at:end].splitlines(), block)
            at = end + len(_FRAME_END)
        return raw[at:]

    def _read_lines(self, client: ProviderClient, lines: list[bytes], block: Block) -> None:
        datas = self._datas(lines)
        if not datas:
            return
        try:
            events = orjson.loads(b"[" + b",".join(datas) + b"]")
            if len(events) != len(datas):
                raise ValueError("two objects in one event")
        except ValueError:
            events = self._readable(client, datas)
        texts, plain = self.texts, None
        try:
            for event, data in zip(events, datas, strict=False):
                choices = event.get("choices")
                if choices and len(choices) == 1 and not event.get("usage") and self.finish is None:
                    choice = choices[0]
                    delta = choice.get("delta")
                    content = delta.get("content") if delta else None
                    if (
                        type(content) is str  # nearly all frames
                        and (len(delta) == 1 or (content and len(delta) == 2 and "role" in delta))
                        and not (choice.get("finish_reason") or choice.get("index") or event.get("error"))
                    ):
                        texts.append(content)
                        block.add(data)
                        plain = event, data
                        continue
                self._unusual(client, event, data, block)
        except RouteurError as error:
            self.failure = error
        except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
            self.failure = client.unreadable(f"{type(error).__name__} in an event")
        if plain is not None:
            self._learn(*plain)

    def _learn(self, event: dict[str, Any], data: bytes) -> None:
        """Note the form of a frame that is just a piece of text."""
        if not self._head:
            self._note_head(event)
        if self._lessons:
            self._lessons -= 1
            self._mould = _Mould.of(data, event)

    def ending(self) -> Ending:
        """What was held back: how it ended, and what it cost where the caller has asked."""
        if self._usage_wanted and self._usage is not None:
            self._last.add(orjson.dumps({**self._head, "choices": [], "usage": self._usage}))
        return self._last

    def _datas(self, lines: list[bytes]) -> list[bytes]:
        datas = []
        for line in lines:
            if line[:5] == b"data:":
                data = line[6:] if line[5:6] == b" " else line[5:]
                if data[:6] == b"[DONE]":
                    self.done = True
                    break
                if data:
                    datas.append(data)
        return datas

    def _readable(self, client: ProviderClient, datas: list[bytes]) -> list[Any]:
        """Those before the first that cannot be read."""
        events = []
        for data in datas:
            try:
                events.append(orjson.loads(data))
            except orjson.JSONDecodeError as error:
                self.failure = client.unreadable(str(error))
                break
        return events

    def _unusual(self, client: ProviderClient, event: dict[str, Any], data: bytes, block: Block) -> None:
        """A frame that is not just a piece of text."""
        if event.get("error"):
            raise client.error_in_stream(event["error"])
        changed = False
        choices = event.get("choices") or []
        if usage := event.get("usage"):
            self._note_usage(usage)
            event.pop("usage")
            changed = True
        if not choices:
            return
        if not self._head:
            self._note_head(event)
        over = len(self._finished) >= self._choices
        finishes = False
        for choice in choices:
            index, delta, finish = choice.get("index") or 0, choice.get("delta"), choice.get("finish_reason")
            if index in self._finished:
                continue
            if isinstance(delta, dict):
                changed = _mend(delta) or changed
                if index == 0:
                    self.add(read_message(delta))
            if finish:
                self._finished.add(index)
                if finish not in _FINISHES:
                    choice["finish_reason"] = _known(finish)
                    changed = True
                finishes = len(self._finished) >= self._choices
                if index == 0:
                    self.finish = finish
        if over:
            return  # words after the end are not part of the answer
        data = orjson.dumps(event) if changed else data
        (self._last if finishes else block).add(data)

    def _note_usage(self, usage: Any) -> None:
        read = read_usage(usage)
        if read is not None:
            self.usage, self._usage = read, usage

    def _note_head(self, event: dict[str, Any]) -> None:
        self._head = {name: event[name] for name in ("id", "object", "created", "model") if name in event}
        self.served = event.get("model") if isinstance(event.get("model"), str) else None

    # -- a whole answer --

    def read_whole(self, client: ProviderClient, raw: bytes, body: dict[str, Any]) -> bytes:
        """Read an unstreamed answer; gives what to hand on.

        Raises:
            RouteurError: it reports an error, or has no answer.
        """
        if body.get("error"):
            raise client.error_in_stream(body["error"])
        changed = False
        try:
            self.usage = read_usage(body.get("usage"))
            if body.get("usage") is not None and self.usage is None:
                body.pop("usage")  # what makes no sense is not handed on as a count
                changed = True
            choices = body["choices"]
            for place, choice in enumerate(choices):
                changed = _mend(choice["message"]) or changed
                finish = choice.get("finish_reason")
                if finish and finish not in _FINISHES:
                    choice["finish_reason"] = _known(finish)
                    changed = True
                if place == 0:
                    self.finish = finish
                    self.add(read_message(choice["message"]))
            if not choices:
                raise IndexError
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise client.unreadable("an answer without choices") from error
        self.served = body["model"] if isinstance(body.get("model"), str) else None
        return orjson.dumps(body) if changed else raw


def _mend(message: dict[str, Any]) -> bool:
    """Content in parts, as Mistral sends thoughts, becomes text and `reasoning_content`; True when that was needed."""
    if not isinstance(message.get("content"), list):
        return False
    read = read_message(message)
    message["content"] = read.text
    if read.reasoning:
        message["reasoning_content"] = read.reasoning
    return True


def _known(finish: Any) -> str:
    answer = Answer(finish=finish if isinstance(finish, str) else "stop")
    return answer.finish_reason or "stop"
