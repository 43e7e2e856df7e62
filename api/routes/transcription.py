"""`POST /transcription`: a file in, what was said in it out."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.audio_forms import Begun, TranscriptionForm, TranscriptStreamResponse, begin_transcription
from api.dependencies import AllServices, TranscriptionServiceDep
from api.errors import FACES, problem_body, problem_responses
from api.streaming.transcripts import TEXTS, delta_frame, done_frame, usage_of
from core.dependencies import require
from domain.audio import Segment, Transcript, TranscriptFormat
from domain.auth import Principal, Scope
from domain.errors import RouteurError, Unavailable
from services.transcription_run import TranscriptionRun

router = APIRouter(tags=["transcription"])

Caller = Annotated[Principal, Depends(require(Scope.TRANSCRIPTION))]

_STRING = {"schema": {"type": "string"}}
_TRANSCRIPT = {
    "type": "object",
    "required": ["run_id", "session_id", "model", "text", "language", "duration", "segments", "usage"],
    "properties": {
        "run_id": {"type": "string"},
        "session_id": {"type": "string"},
        "model": {"type": "string"},
        "text": {"type": "string"},
        "language": {"type": ["string", "null"]},
        "duration": {"type": "number", "description": "seconds"},
        "segments": {"type": "array", "items": {"type": "object"}},
        "words": {"type": "array", "items": {"type": "object"}},
        "usage": {"type": "object"},
    },
}


@router.post(
    "/transcription",
    response_model=None,
    responses={
        **problem_responses(401, 403, 404, 409, 413, 415, 422, 429, 502, 503, 504),
        200: {
            "description": "The transcript, in the form that was asked for; with `stream`, its words as they are heard",
            "content": {
                "application/json": {"schema": _TRANSCRIPT},
                "text/plain": _STRING,
                "text/vtt": _STRING,
                "text/event-stream": _STRING,
            },
        },
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/TranscriptionForm"}}},
        }
    },
)
async def transcribe(
    request: Request, caller: Caller, service: TranscriptionServiceDep, services: AllServices
) -> Response:
    """Transcribe a file. It is a run in a session; the header `x-model` names what listened."""
    form, begun = await begin_transcription(request, service, caller, TranscriptionForm)
    run = begun.run
    headers = {"x-model": run.model, "x-run-id": run.run_id, "x-session-id": run.session_id}
    if form.stream:
        await begun.open(request)
        heartbeat = services.settings.server.heartbeat
        return TranscriptStreamResponse(_frames(begun), begun, headers, heartbeat=heartbeat)
    transcript = await begun.whole(request)
    if form.response_format in TEXTS:
        render, media_type = TEXTS[form.response_format]
        return Response(render(transcript), headers=headers, media_type=media_type)
    verbose = form.response_format is TranscriptFormat.VERBOSE_JSON
    body = _body(run, transcript, verbose=verbose, words=form.words)
    return Response(orjson.dumps(body), headers=headers, media_type="application/json")


def _body(run: TranscriptionRun, transcript: Transcript, *, verbose: bool, words: bool) -> dict[str, Any]:
    brief = {"id", "start", "end", "text"}
    body: dict[str, Any] = {
        "run_id": run.run_id,
        "session_id": run.session_id,
        "model": run.model,
        "text": transcript.text,
        "language": transcript.language,
        "duration": transcript.duration,
        "segments": [
            one.model_dump(exclude={"speaker"}) if verbose else one.model_dump(include=brief)
            for one in transcript.segments
        ],
        "usage": usage_of(transcript),
    }
    if words:
        body["words"] = [one.model_dump() for one in transcript.words or ()]
    return body


async def _frames(begun: Begun) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(begun.run.pieces()) as pieces:
            async for piece in pieces:
                if not isinstance(piece, Segment):
                    yield delta_frame(piece)
        yield done_frame(begun.transcript())
    except RouteurError as error:
        yield _error_frame(error)
    except asyncio.CancelledError:
        yield _error_frame(Unavailable("The server is stopping.", code="server_stopping", retry_after=1))
        raise


def _error_frame(error: RouteurError) -> bytes:
    return b"event: error\ndata: " + orjson.dumps(problem_body(error, FACES[error.kind].status)) + b"\n\n"
