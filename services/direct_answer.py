"""What a provider answers to a direct call: handed on frame by frame as it came, mended only where it must be.

Every frame is parsed (one call for each read of the socket), so that nothing unreadable is handed on; bytes are made
anew only for what OpenAI's clients do not understand: other words for the end, content in parts, usage in odd places.
"""

from typing import Any

import orjson

from core.http import ProviderClient
from domain.errors import RouteurError
from services.llm_providers.wire.answer import Answer
from services.llm_providers.wire.openai_wire import read_message, read_usage

Frames = list[bytes]
_FINISHES = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_DONE = b"data: [DONE]\n\n"


class Block:
    """Frames that came together: their data as bytes, and as what they say."""

    __slots__ = ("datas", "events")

    def __init__(self, datas: Frames, events: list[dict[str, Any]]) -> None:
        self.datas = datas
        self.events = events

    def __bool__(self) -> bool:
        return bool(self.datas)

    def sse(self) -> bytes:
        """As server-sent events."""
        return b"data: " + b"\n\ndata: ".join(self.datas) + b"\n\n"


class Ending(Block):
    """The last frames; there is no more."""

    def sse(self) -> bytes:
        """As server-sent events, with the word that ends the stream."""
        return (super().sse() if self.datas else b"") + _DONE


class DirectAnswer(Answer):
    """Grows with each read. `failure`: what came after the last good frame; raise it when those are told.

    Args:
        asked: the caller's body.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        super().__init__()
        self.failure: RouteurError | None = None
        options = asked.get("stream_options") or {}
        self._usage_wanted = bool(options.get("include_usage"))
        self._choices = asked.get("n") or 1
        self._finished: set[int] = set()
        self._last: Frames = []  # held back until everything is written down
        self._last_events: list[dict[str, Any]] = []
        self._usage: Any = None
        self._head: dict[str, Any] = {}

    # -- a stream --

    def read(self, client: ProviderClient, lines: list[bytes]) -> Block:
        """What can be handed on of these lines."""
        datas = self._datas(lines)
        block = Block([], [])
        if not datas:
            return block
        try:
            events = orjson.loads(b"[" + b",".join(datas) + b"]")
            if len(events) != len(datas):
                raise ValueError("two objects in one event")
        except ValueError:
            events = self._readable(client, datas)
        texts, out, kept = self.texts, block.datas, block.events
        try:
            for event, data in zip(events, datas, strict=False):
                choices = event.get("choices")
                if choices and len(choices) == 1 and not event.get("usage") and self.finish is None:
                    choice = choices[0]
                    delta = choice.get("delta")
                    if (
                        delta
                        and len(delta) == 1
                        and not (choice.get("finish_reason") or choice.get("index") or event.get("error"))
                    ):
                        content = delta.get("content")
                        if type(content) is str:  # nearly all frames
                            texts.append(content)
                            out.append(data)
                            kept.append(event)
                            continue
                self._unusual(client, event, data, block)
        except RouteurError as error:
            self.failure = error
        except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
            self.failure = client.unreadable(f"{type(error).__name__} in an event")
        if not self._head and kept:
            self._note_head(kept[0])
        return block

    def ending(self) -> Ending:
        """What was held back: how it ended, and what it cost where the caller has asked."""
        if self._usage_wanted and self._usage is not None:
            event = {**self._head, "choices": [], "usage": self._usage}
            self._last.append(orjson.dumps(event))
            self._last_events.append(event)
        return Ending(self._last, self._last_events)

    def _datas(self, lines: list[bytes]) -> Frames:
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

    def _readable(self, client: ProviderClient, datas: Frames) -> list[Any]:
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
        if finishes:
            self._last.append(data)
            self._last_events.append(event)
        else:
            block.datas.append(data)
            block.events.append(event)

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
