"""The chat completions wire that OpenAI made and everybody speaks: events in, deltas out."""

from typing import Any

import orjson

from core.http import ProviderClient
from domain.usage import Usage
from services.llm_providers.wire.answer import Answer, Delta, Fragment, counted

COMPLETIONS = "/chat/completions"


def read_line(client: ProviderClient, answer: Answer, line: bytes) -> Delta | None:
    """What one line of the event stream adds; None for everything that is not an answer's piece.

    Raises:
        RouteurError: the provider reports an error, or the line cannot be read.
    """
    if line[:5] != b"data:":
        return None  # comments, event names, blank lines
    data = line[5:].strip()
    if data[:6] == b"[DONE]":
        answer.done = True
        return None
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise client.unreadable(str(error)) from error
    if not isinstance(event, dict):
        raise client.unreadable("an event that is not an object")
    if event.get("error"):
        raise client.error_in_stream(event["error"])
    if (usage := event.get("usage")) is not None:
        answer.usage = read_usage(usage)
    choices = event.get("choices")
    if not choices:
        return None
    choice = choices[0]
    if answer.served is None:
        answer.served = event.get("model")
    was_over = answer.finish is not None
    answer.finish = choice.get("finish_reason") or answer.finish
    delta = choice.get("delta")
    if not delta or was_over:
        return None  # words after the end are not part of the answer
    return read_message(delta)


def read_whole(client: ProviderClient, answer: Answer, body: dict[str, Any]) -> Delta:
    """The delta of a whole, unstreamed answer.

    Raises:
        RouteurError: the provider reports an error, or the body has no answer.
    """
    if body.get("error"):
        raise client.error_in_stream(body["error"])
    answer.usage = read_usage(body.get("usage"))
    try:
        choice = body["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError) as error:
        raise client.unreadable("an answer without choices") from error
    answer.served = body.get("model")
    answer.finish = choice.get("finish_reason")
    return read_message(message)


def read_message(message: dict[str, Any]) -> Delta:
    """Text, reasoning and tool calls of a message or of a delta."""
    content = message.get("content")
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    text = content if isinstance(content, str) else ""
    if isinstance(content, list):
        text, thought = _parts(content)
        reasoning = reasoning or thought
    calls = message.get("tool_calls")
    return Delta(text, reasoning if isinstance(reasoning, str) else "", _fragments(calls) if calls else ())


def read_usage(usage: Any) -> Usage | None:
    """What was counted; None when it is missing or makes no sense."""
    if not isinstance(usage, dict):
        return None
    inputs, outputs = counted(usage.get("prompt_tokens")), counted(usage.get("completion_tokens"))
    if inputs is None or outputs is None:
        return None
    total = counted(usage.get("total_tokens"))
    read, written = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    read = read if isinstance(read, dict) else {}
    written = written if isinstance(written, dict) else {}
    return Usage(
        input_tokens=inputs,
        output_tokens=outputs,
        total_tokens=inputs + outputs if total is None else total,
        cached_tokens=counted(read.get("cached_tokens")),
        audio_tokens=counted(read.get("audio_tokens")),
        reasoning_tokens=counted(written.get("reasoning_tokens")),
    )


def _parts(parts: list[Any]) -> tuple[str, str]:
    """Text and thoughts of typed parts, as Mistral sends them."""
    text, thought = "", ""
    for part in parts:
        if isinstance(part, str):
            text += part
        elif isinstance(part, dict) and part.get("type") == "text":
            text += str(part.get("text") or "")
        elif isinstance(part, dict) and part.get("type") == "thinking":
            inner = part.get("thinking")
            thought += _parts(inner)[0] if isinstance(inner, list) else str(inner or "")
    return text, thought


def _fragments(calls: Any) -> tuple[Fragment, ...]:
    found = []
    for position, call in enumerate(calls if isinstance(calls, list) else []):
        if not isinstance(call, dict):
            continue
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):  # some servers send the object itself
            arguments = orjson.dumps(arguments).decode()
        index = counted(call.get("index"))
        found.append(Fragment(position if index is None else index, call.get("id"), function.get("name"), arguments))
    return tuple(found)
