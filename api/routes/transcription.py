"""`POST /transcription`: a file in, what was said in it out."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from api.audio_forms import Begun, TranscriptionForm, TranscriptStreamResponse, begin_received, received_form
from api.dependencies import AllServices, MadeId, TranscriptionJobsDep, TranscriptionServiceDep
from api.errors import FACES, problem_body, problem_responses
from api.streaming.response import while_connected
from api.streaming.transcripts import TEXTS, delta_frame, done_frame, usage_of
from core.dependencies import require
from domain.audio import Segment, TranscriptFormat
from domain.auth import Principal, Scope
from domain.background import RunAccepted
from domain.errors import InvalidRequest, RouteurError, Unavailable
from services.transcription_jobs import Finished, JobRequest

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

_FORMS = {"application/json": {"schema": _TRANSCRIPT}, "text/plain": _STRING, "text/vtt": _STRING}
_ANSWER: dict[int | str, dict[str, Any]] = {200: {"description": "The transcript", "content": _FORMS}}

RunId = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9-]+$")]
NativeFormat = Literal["json", "text", "srt", "vtt", "verbose_json"]


@router.post(
    "/transcription",
    response_model=None,
    responses={
        **problem_responses(401, 403, 404, 409, 413, 415, 422, 429, 502, 503, 504),
        200: {
            "description": "The transcript, in the form that was asked for; with `stream`, its words as they are heard",
            "content": {**_FORMS, "text/event-stream": _STRING},
        },
        202: {
            "description": "With `background`: the run is written down and will be done",
            "model": RunAccepted,
            "headers": {"Location": {"description": "the run", "schema": _STRING["schema"]}},
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
    request: Request,
    caller: Caller,
    service: TranscriptionServiceDep,
    jobs: TranscriptionJobsDep,
    services: AllServices,
    made_id: MadeId,
) -> Response:
    """Transcribe a file. It is a run in a session; the header `x-model` names what listened.

    With `background` the answer comes at once, and the run is followed like any other.
    """
    async with AsyncExitStack() as stack:
        received = await stack.enter_async_context(received_form(request, service, TranscriptionForm))
        form = received.form
        if form.background:
            job = JobRequest(
                received.upload, form.options(), form.response_format, form.session_id, webhook=form.webhook
            )
            submitting = jobs.submit(received.spool, job, caller, run_id=made_id)
            return _accepted(await while_connected(request.receive, submitting))
        run = await begin_received(request, service, caller, received)
        stack.push_async_callback(run.aclose)
        begun = Begun(run, stack.pop_all())
    headers = {"x-model": run.model, "x-run-id": run.run_id, "x-session-id": run.session_id}
    if form.stream:
        await begun.open(request)
        heartbeat = services.settings.server.heartbeat
        return TranscriptStreamResponse(_frames(begun), begun, headers, heartbeat=heartbeat)
    finished = Finished(
        run.run_id, run.session_id, await begun.whole(request), response_format=form.response_format, words=form.words
    )
    return _written(finished, headers)


@router.get(
    "/transcription/{run_id}", response_model=None, responses={**problem_responses(401, 403, 404, 409, 422), **_ANSWER}
)
async def get_transcription(
    run_id: RunId, caller: Caller, jobs: TranscriptionJobsDep, response_format: NativeFormat | None = None
) -> Response:
    """What came of a transcription in the background, in any form; unasked, in that of its request."""
    found = await jobs.result(run_id, caller)
    if response_format is not None:
        found = replace(found, response_format=TranscriptFormat(response_format))
    timed = found.response_format in (TranscriptFormat.SRT, TranscriptFormat.VTT)
    if timed and found.transcript.text and not found.transcript.segments:
        raise InvalidRequest(
            f"The model '{found.transcript.model}' told no times.", code="not_supported", param="response_format"
        )
    headers = {"x-model": found.transcript.model, "x-run-id": found.run_id, "x-session-id": found.session_id}
    return _written(found, headers)


def _accepted(accepted: RunAccepted) -> Response:
    headers = {"location": f"/api/runs/{accepted.run_id}", "x-run-id": accepted.run_id, "x-model": accepted.model}
    return Response(accepted.model_dump_json(), status_code=202, headers=headers, media_type="application/json")


def _written(found: Finished, headers: Mapping[str, str]) -> Response:
    if found.response_format in TEXTS:
        render, media_type = TEXTS[found.response_format]
        return Response(render(found.transcript), headers=headers, media_type=media_type)
    return Response(orjson.dumps(_body(found)), headers=headers, media_type="application/json")


def _body(found: Finished) -> dict[str, Any]:
    brief, transcript = {"id", "start", "end", "text"}, found.transcript
    verbose, words = found.response_format is TranscriptFormat.VERBOSE_JSON, found.words
    body: dict[str, Any] = {
        "run_id": found.run_id,
        "session_id": found.session_id,
        "model": transcript.model,
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
