"""The speech wire that OpenAI made: audio as it is, or as events whose last one tells the usage."""

import base64
import binascii
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from core.http import Patience, ProviderClient
from domain.errors import UpstreamFailure
from domain.speech import SpeechRequest, Spoken
from domain.usage import Usage
from services.llm_providers.wire.answer import counted

SPEECH = "/audio/speech"
_EVENTS = "text/event-stream"
_AUDIO = re.compile(r"audio/[a-z0-9.+-]{1,60}")  # it becomes a header of ours
_RAW = frozenset({"", "application/octet-stream", "binary/octet-stream"})
_NO_EVENTS = "tts-1"  # OpenAI's models whose names begin like this send audio only


def openai_payload(name: str, asked: SpeechRequest) -> dict[str, Any]:
    """The body as OpenAI and those like it want it. Where events cannot be had, `SpeechService`'s callers make them."""
    payload: dict[str, Any] = {
        "model": name,
        "input": asked.text,
        "voice": {"id": asked.voice} if asked.custom_voice else asked.voice,
        "response_format": asked.form.value,
    }
    if asked.speed != 1:
        payload["speed"] = asked.speed
    if asked.instructions is not None:
        payload["instructions"] = asked.instructions
    if asked.events and not name.startswith(_NO_EVENTS):
        payload["stream_format"] = "sse"
    return payload


@asynccontextmanager
async def post_speech(
    client: ProviderClient,
    name: str,
    payload: Mapping[str, Any],
    patience: Patience,
    *,
    field: str = "audio",
    convert: Callable[[bytes], bytes] | None = None,
) -> AsyncIterator[Spoken]:
    """What the provider answers: audio, or events (whatever it was asked for).

    Args:
        field: where an event holds its audio.
        convert: what is done to the audio of each event.

    Raises:
        RouteurError: of the upstream kinds, InvalidRequest or ModelNotFound; also while iterating.
    """
    answered = client.stream_bytes(SPEECH, payload, model=f"{client.name}/{name}", patience=patience)
    async with answered as answer:
        if answer.content_type == _EVENTS:
            spoken = Spoken(answer)
            spoken.chunks = _from_events(client, answer.lines(), spoken, field, convert)
        elif _AUDIO.fullmatch(answer.content_type):
            spoken = Spoken(answer, answer.content_type)
        elif answer.content_type in _RAW:
            spoken = Spoken(answer)
        else:
            raise client.unreadable(f"speech as {answer.content_type}")
        yield spoken


async def _from_events(
    client: ProviderClient,
    batches: AsyncIterator[list[bytes]],
    spoken: Spoken,
    field: str,
    convert: Callable[[bytes], bytes] | None,
) -> AsyncIterator[bytes]:
    async for lines in batches:
        for line in lines:
            event = _event(client, line)
            if event is None:
                continue
            if event.get("error"):
                raise client.error_in_stream(event["error"])
            if event.get("type") == "speech.audio.done":
                spoken.usage = read_usage(event.get("usage"))
                return
            if event.get("type") == "speech.audio.delta":
                audio = _audio(client, event.get(field))
                yield audio if convert is None else convert(audio)
    raise UpstreamFailure(f"The provider '{client.name}' broke off in the middle.", code="upstream_cut")


def _event(client: ProviderClient, line: bytes) -> dict[str, Any] | None:
    data = line.removeprefix(b"data:").strip()
    if not line.startswith(b"data:") or data == b"[DONE]":
        return None
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise client.unreadable(str(error)) from error
    if not isinstance(event, dict):
        raise client.unreadable("an event that is not an object")
    return event


def _audio(client: ProviderClient, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise client.unreadable("audio that is not base64") from error


def read_usage(usage: Any) -> Usage | None:
    """What was counted, in OpenAI's words or Mistral's. None when it is missing, or zero: nobody has counted."""
    if not isinstance(usage, Mapping):
        return None
    inputs = counted(usage.get("input_tokens")) or counted(usage.get("prompt_tokens"))
    outputs = counted(usage.get("output_tokens")) or counted(usage.get("completion_tokens"))
    if not inputs and not outputs:
        return None
    inputs, outputs = inputs or 0, outputs or 0
    total = counted(usage.get("total_tokens")) or inputs + outputs
    return Usage(input_tokens=inputs, output_tokens=outputs, total_tokens=total)
