"""A transcript as text of every kind: pure functions."""

from collections.abc import Callable
from typing import Any

import orjson

from domain.audio import Segment, Transcript
from domain.text import clean_text
from domain.usage import Usage

UNDETERMINED = "und"  # a language that nobody told (ISO 639-3)


def srt(transcript: Transcript) -> str:
    """SubRip: numbered, `00:00:01,500`."""
    return "".join(f"{number}\n{_times(one, ',')}\n{_cue(one)}\n\n" for number, one in enumerate(_shown(transcript), 1))


def vtt(transcript: Transcript) -> str:
    """WebVTT: `00:00:01.500`, and nothing in a text that would be markup."""
    cues = (f"{_times(one, '.')}\n{_escaped(_cue(one))}\n\n" for one in _shown(transcript))
    return "WEBVTT\n\n" + "".join(cues)


def text(transcript: Transcript) -> str:
    """Nothing but the words, and a newline."""
    return transcript.text + "\n"


def json_body(transcript: Transcript) -> dict[str, Any]:
    """OpenAI's `json`."""
    return {"text": transcript.text, "usage": usage_of(transcript)}


def verbose_body(transcript: Transcript, *, task: str, segments: bool = True, words: bool = False) -> dict[str, Any]:
    """OpenAI's `verbose_json`; words only when they were asked for."""
    body: dict[str, Any] = {
        "task": task,
        "language": transcript.language or UNDETERMINED,
        "duration": transcript.duration,
        "text": transcript.text,
    }
    if segments:
        body["segments"] = [one.model_dump(exclude={"speaker"}) for one in transcript.segments]
    if words:
        body["words"] = [one.model_dump() for one in transcript.words or ()]
    return {**body, "usage": usage_of(transcript)}


def diarized_body(transcript: Transcript) -> dict[str, Any]:
    """OpenAI's `diarized_json`."""
    return {
        "task": "transcribe",
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": [diarized_segment(one) for one in transcript.segments],
        "usage": usage_of(transcript),
    }


def diarized_segment(segment: Segment) -> dict[str, Any]:
    """A segment with its speaker; also an event of a stream."""
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{segment.id:03}",
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "speaker": segment.speaker or "?",
    }


def usage_of(transcript: Transcript) -> dict[str, Any]:
    """Tokens where somebody counted them, else seconds."""
    tokens = _tokens(transcript.usage)
    return tokens or {"type": "duration", "seconds": transcript.duration}


def delta_frame(delta: str) -> bytes:
    """Words as they are heard."""
    return _frame({"type": "transcript.text.delta", "delta": delta})


def segment_frame(segment: Segment) -> bytes:
    """A segment and who said it."""
    return _frame(diarized_segment(segment))


def done_frame(transcript: Transcript) -> bytes:
    """The end as hoped. Its usage is of the tokens kind only."""
    tokens = _tokens(transcript.usage)
    return _frame({"type": "transcript.text.done", "text": transcript.text, **({"usage": tokens} if tokens else {})})


def _frame(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _tokens(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    told: dict[str, Any] = {
        "type": "tokens",
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.audio_tokens is not None:
        text_tokens = max(0, usage.input_tokens - usage.audio_tokens)
        told["input_token_details"] = {"audio_tokens": usage.audio_tokens, "text_tokens": text_tokens}
    return told


def _shown(transcript: Transcript) -> list[Segment]:
    """Cues need words."""
    return [one for one in transcript.segments if clean_text(one.text).strip()]


def _cue(segment: Segment) -> str:
    """On one line: an empty line would end the cue, and an arrow would begin another."""
    said = " ".join(clean_text(segment.text).split()).replace("-->", "→")
    return f"{segment.speaker}: {said}" if segment.speaker else said


def _escaped(said: str) -> str:
    return said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _times(segment: Segment, point: str) -> str:
    """A cue ends after its beginning."""
    start = round(max(0.0, segment.start) * 1000)
    end = max(start + 1, round(segment.end * 1000))
    return f"{_clock(start, point)} --> {_clock(end, point)}"


def _clock(milliseconds: int, point: str) -> str:
    whole, rest = divmod(milliseconds, 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{rest:03}"


#: Renderers of those forms that are no JSON, with their media types.
TEXTS: dict[str, tuple[Callable[[Transcript], str], str]] = {
    "text": (text, "text/plain; charset=utf-8"),
    "srt": (srt, "text/plain; charset=utf-8"),
    "vtt": (vtt, "text/vtt; charset=utf-8"),
}
