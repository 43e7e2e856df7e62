"""What providers answer, read with care: a number that is none, or a segment without times, is an unreadable answer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from core.http import ProviderClient
from domain.audio import Segment, SpanTranscript, Word
from domain.text import clean_text
from domain.usage import Usage
from services.llm_providers.wire.answer import counted

_MOST_SEGMENTS = 100_000


class Unreadable(ValueError):
    """An answer that makes no sense."""


def read_answer(client: ProviderClient, body: Mapping[str, Any], *, words: bool) -> SpanTranscript:
    """A transcription, as JSON of any form.

    Raises:
        RouteurError: of the upstream kinds; it is none.
    """
    if body.get("error"):
        raise client.error_in_stream(body["error"])
    try:
        return _read(body, words=words)
    except Unreadable as error:
        raise client.unreadable(f"a transcription: {error}") from error


def _read(body: Mapping[str, Any], *, words: bool) -> SpanTranscript:
    text = body.get("text")
    if not isinstance(text, str):
        raise Unreadable("without text")
    language = body.get("language")
    told = body.get("words")
    return SpanTranscript(
        text=clean_text(text).strip(),
        language=clean_text(language)[:50] if isinstance(language, str) and language else None,
        segments=[_segment(place, one) for place, one in enumerate(_list(body.get("segments")))],
        words=[_word(one) for one in _list(told)] if words and told is not None else None,
        usage=read_usage(body.get("usage")),
    )


def _list(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MOST_SEGMENTS:
        raise Unreadable("with a list that is none")
    return value


def _segment(place: int, one: Any) -> Segment:
    if not isinstance(one, dict) or not isinstance(one.get("text"), str):
        raise Unreadable("with a segment without text")
    speaker = one.get("speaker", one.get("speaker_id"))
    tokens = one.get("tokens")
    return Segment(
        id=place,
        start=_time(one.get("start")),
        end=_time(one.get("end")),
        text=clean_text(one["text"]),
        seek=counted(one.get("seek")) or 0,
        tokens=[token for token in tokens if isinstance(token, int)] if isinstance(tokens, list) else [],
        temperature=_number(one.get("temperature")),
        avg_logprob=_number(one.get("avg_logprob")),
        compression_ratio=_number(one.get("compression_ratio")),
        no_speech_prob=_number(one.get("no_speech_prob")),
        speaker=None if speaker is None else clean_text(str(speaker))[:100],
    )


def _word(one: Any) -> Word:
    said = one.get("word", one.get("text")) if isinstance(one, dict) else None
    if not isinstance(said, str):
        raise Unreadable("with a word that is none")
    return Word(word=clean_text(said).strip(), start=_time(one.get("start")), end=_time(one.get("end")))


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unreadable("with a time that is none")
    return float(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return float(value)


def read_usage(usage: Any) -> Usage | None:
    """Tokens, where they were counted; seconds are known without being told."""
    if not isinstance(usage, Mapping):
        return None
    read = counted(usage.get("input_tokens", usage.get("prompt_tokens")))
    written = counted(usage.get("output_tokens", usage.get("completion_tokens")))
    if not read:  # every sound has tokens: zero is the word of somebody who has not counted
        return None
    details = usage.get("input_token_details")
    audio = counted(details.get("audio_tokens")) if isinstance(details, Mapping) else None
    total = counted(usage.get("total_tokens")) or read + (written or 0)
    return Usage(input_tokens=read, output_tokens=written or 0, total_tokens=total, audio_tokens=audio)


def read_frame(client: ProviderClient, line: bytes) -> dict[str, Any] | None:
    """The event in a line of a stream; None: there is none.

    Raises:
        RouteurError: of the upstream kinds; it tells of a failure, or cannot be read.
    """
    if not line.startswith(b"data:"):
        return None
    data = line[5:].strip()
    if not data or data == b"[DONE]":
        return None
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise client.unreadable(str(error)) from error
    if not isinstance(event, dict):
        raise client.unreadable("an event that is none")
    if event.get("error"):
        raise client.error_in_stream(event["error"])
    return event
