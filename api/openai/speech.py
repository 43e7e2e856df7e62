"""`POST /v1/audio/speech`: a text in, its sound out as it is made, as audio or as events."""

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.dependencies import SpeechServiceDep
from api.errors import openai_body, openai_responses
from api.streaming.openai_chunks import error_frame
from api.streaming.response import EventStreamResponse, while_connected
from core.dependencies import require
from domain.agents import MODEL_ID_PATTERN
from domain.auth import Principal, Scope
from domain.errors import RouteurError
from domain.speech import FASTEST, MAX_SPEECH_CHARS, SLOWEST, SpeechFormat, SpeechRequest
from domain.text import clean_text
from domain.usage import Usage
from services.speech_service import SpeechStream

router = APIRouter(prefix="/v1", tags=["openai"])

#: Speech is a model's answer: a key for models is enough.
Caller = Annotated[Principal, Depends(require(Scope.COMPLETION))]


def _said(text: str) -> str:
    cleaned = clean_text(text)
    if not cleaned.strip():
        raise ValueError("holds nothing to say")
    return cleaned


VoiceName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(clean_text)]


class CustomVoice(BaseModel):
    """A voice that the caller has made at the provider."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: VoiceName


class SpeechBody(BaseModel):
    """What shall be said. `stream_format` sse: events with base64, the last of which may tell the usage."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"model": "offline/flite", "input": "Hello there.", "voice": "slt"}]},
    )

    model: Annotated[str, Field(min_length=1, max_length=200, pattern=MODEL_ID_PATTERN)]
    input: Annotated[str, Field(min_length=1, max_length=MAX_SPEECH_CHARS), AfterValidator(_said)]
    voice: VoiceName | CustomVoice
    response_format: SpeechFormat | None = None
    speed: Annotated[float, Field(strict=True, ge=SLOWEST, le=FASTEST, allow_inf_nan=False)] | None = None
    instructions: Annotated[str, Field(max_length=MAX_SPEECH_CHARS), AfterValidator(clean_text)] | None = None
    stream_format: Literal["audio", "sse"] | None = None

    def request(self) -> SpeechRequest:
        """The command."""
        custom = isinstance(self.voice, CustomVoice)
        return SpeechRequest(
            self.model,
            self.input,
            self.voice.id if isinstance(self.voice, CustomVoice) else self.voice,
            self.response_format or SpeechFormat.MP3,
            1.0 if self.speed is None else self.speed,
            self.instructions or None,
            custom_voice=custom,
            events=self.stream_format == "sse",
        )


_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_ANSWER: dict[str, Any] = {
    "description": "The sound as it is made, or with `stream_format` sse its events",
    "content": {
        **{form.media_type: _BINARY for form in SpeechFormat},
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": 'data: {"type":"speech.audio.delta","audio":"SUQzBAA..."}\n\n'
            'data: {"type":"speech.audio.done","usage":{"input_tokens":4,"output_tokens":60,"total_tokens":64}}\n\n',
        },
    },
}


@router.post(
    "/audio/speech",
    response_class=Response,
    responses={**openai_responses(400, 401, 403, 404, 409, 413, 429, 502, 503, 504), 200: _ANSWER},
)
async def speak(body: SpeechBody, request: Request, caller: Caller, speech: SpeechServiceDep) -> Response:
    """Say `input`. The header `x-model` names the model that speaks."""
    asked = body.request()
    stream = await while_connected(request.receive, speech.speak(asked, caller))
    headers = {"x-model": stream.model}
    if asked.events:
        return EventStreamResponse(_events(stream), headers)
    return EventStreamResponse(stream.chunks(), {**headers, "content-type": stream.content_type})


async def _events(stream: SpeechStream) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(stream.chunks()) as chunks:
            async for chunk in chunks:
                yield _frame({"type": "speech.audio.delta", "audio": base64.b64encode(chunk).decode()})
    except RouteurError as error:
        yield error_frame(openai_body(error))
        return
    yield _frame({"type": "speech.audio.done", "usage": _usage(stream.usage)})


def _frame(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return usage.model_dump(include={"input_tokens", "output_tokens", "total_tokens"})
