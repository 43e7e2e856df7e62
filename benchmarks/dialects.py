"""How a route is asked and how its answer is read: one `Dialect` for each route that can be measured.

Every answer that was measured is read in full afterwards: a figure for wrong answers is no figure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.speech import Speech

QUESTION = "Count for me, please."


class WrongAnswer(Exception):
    """An answer that is not what the provider said."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The text that arrived and the tokens that were counted (None: not told)."""

    text: str
    output_tokens: int | None


@dataclass(frozen=True, slots=True)
class Dialect:
    """One route. `body` makes the request for a model's name; `read` raises ValueError for what makes no sense."""

    path: str
    streamed: bool
    body: Callable[[str], dict[str, Any]]
    read: Callable[[bytes], Answer]

    def check(self, speech: Speech, status: int, raw: bytes) -> None:
        """Compare an answer to what the provider said.

        Raises:
            WrongAnswer: another status, text or usage.
        """
        if status != 200:
            raise WrongAnswer(f"{self.path} answered {status}: {raw[:500].decode(errors='replace')}")
        try:
            answer = self.read(raw)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise WrongAnswer(f"{self.path}: {type(error).__name__}: {error} in {raw[-500:]!r}") from error
        if answer.text != speech.text:
            raise WrongAnswer(f"{self.path}: {len(answer.text)} characters differ from the {len(speech.text)} sent")
        if answer.output_tokens != speech.tokens:
            raise WrongAnswer(f"{self.path}: {answer.output_tokens} tokens counted, {speech.tokens} sent")


def _openai_body(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": QUESTION}]}


def _openai_stream_body(model: str) -> dict[str, Any]:
    return _openai_body(model) | {"stream": True, "stream_options": {"include_usage": True}}


def _read_openai(raw: bytes) -> Answer:
    answer = orjson.loads(raw)
    return Answer(answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"])


def _read_openai_stream(raw: bytes) -> Answer:
    *frames, last, rest = raw.split(b"\n\n")
    if last != b"data: [DONE]" or rest:
        raise ValueError("the stream does not end with [DONE]")
    events = [orjson.loads(frame.removeprefix(b"data: ")) for frame in frames]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    counted = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
    return Answer("".join(delta.get("content") or "" for delta in deltas), counted[0] if len(counted) == 1 else None)


def _direct(body: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    """The same of our own door, where a model has a provider."""
    return lambda model: body(f"openai/{model}")


def _agent_body(model: str) -> dict[str, Any]:
    return {"message": QUESTION, "model": f"openai/{model}", "agent": "simple"}


def _run_body(model: str) -> dict[str, Any]:
    return {"input": QUESTION, "model": f"openai/{model}"}


def _read_result(raw: bytes) -> Answer:
    result = orjson.loads(raw)
    return Answer(result["response"], (result["usage"] or {}).get("output_tokens"))


def _read_events(raw: bytes) -> Answer:
    """The native stream: `seq` without holes, one terminal event at the end, the pieces of text in order."""
    *frames, rest = raw.split(b"\n\n")
    if rest:
        raise ValueError("the stream ends within an event")
    fields = [frame.split(b"\ndata: ", 1) for frame in frames if not frame.startswith(b":")]
    events = [orjson.loads(data) for _, data in fields]
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        raise ValueError("seq has holes or disorder")
    if [event["kind"] for event in events].count("run.finished") != 1 or events[-1]["kind"] != "run.finished":
        raise ValueError(f"the last event is {events[-1]['kind']}")
    text = "".join(event["text"] for event in events if event["kind"] == "text.delta")
    if text != events[-1]["output"]:
        raise ValueError("the pieces are not the output")
    return Answer(text, (events[-1]["usage"] or {}).get("output_tokens"))


OPENAI = Dialect("/v1/chat/completions", False, _openai_body, _read_openai)
OPENAI_STREAM = Dialect("/v1/chat/completions", True, _openai_stream_body, _read_openai_stream)
DIRECT = Dialect("/v1/chat/completions", False, _direct(_openai_body), _read_openai)
DIRECT_STREAM = Dialect("/v1/chat/completions", True, _direct(_openai_stream_body), _read_openai_stream)
AGENT = Dialect("/completion", False, _agent_body, _read_result)
SUBMIT = Dialect("/api/agents/simple/run", False, _run_body, _read_result)
AGENT_STREAM = Dialect("/completion/stream", True, _agent_body, _read_events)
