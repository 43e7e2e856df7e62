"""`/v1/audio/transcriptions` and `/v1/audio/translations`: sound in, text out, in every form of OpenAI's."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.audio_forms import (
    Begun,
    OpenAITranscriptionForm,
    TranscriptStreamResponse,
    TranslationForm,
    begin_transcription,
)
from api.dependencies import AllServices, TranscriptionServiceDep
from api.errors import openai_body
from api.openai.door import CALL_ERRORS, answer_headers, bound_session
from api.streaming.openai_chunks import error_frame
from api.streaming.transcripts import (
    TEXTS,
    delta_frame,
    diarized_body,
    done_frame,
    json_body,
    segment_frame,
    verbose_body,
)
from core.dependencies import require
from domain.audio import Segment, Transcript, TranscriptFormat
from domain.auth import Principal, Scope
from domain.errors import InvalidRequest, RouteurError, Unavailable, UnsupportedMedia

router = APIRouter(prefix="/v1/audio", tags=["openai"])

Caller = Annotated[Principal, Depends(require(Scope.TRANSCRIPTION))]

_STRING = {"schema": {"type": "string"}}
_JSON = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}


def form_of(schema: str) -> dict[str, Any]:
    """The body of an operation that takes a form, for OpenAPI."""
    content = {"multipart/form-data": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


def answers(json_schema: dict[str, Any], *, streams: bool) -> dict[int | str, dict[str, Any]]:
    """What an operation answers when all is well, for OpenAPI."""
    content = {"application/json": {"schema": json_schema}, "text/plain": _STRING, "text/vtt": _STRING}
    if streams:
        content["text/event-stream"] = _STRING
    return {200: {"description": "The transcript, in the form that was asked for", "content": content}}


@router.post(
    "/transcriptions",
    response_model=None,
    responses={**CALL_ERRORS, **answers(_JSON, streams=True)},
    openapi_extra=form_of("OpenAITranscriptionForm"),
)
async def create_transcription(
    request: Request, caller: Caller, service: TranscriptionServiceDep, services: AllServices
) -> Response:
    """Transcribe a file. `X-Session-Id` binds it to a stored session; the headers name what listened, and its run."""
    session_id = bound_session(request, {})
    with _file_errors_as_openai():
        form, begun = await begin_transcription(
            request, service, caller, OpenAITranscriptionForm, session_id=session_id
        )
    headers = answer_headers(begun.run.model, begun.run.run_id, begun.run.session_id)
    if form.stream:
        await begun.open(request)
        heartbeat = services.settings.server.heartbeat
        return TranscriptStreamResponse(_frames(begun), begun, headers, heartbeat=heartbeat)
    transcript = await begun.whole(request)
    match form.response_format:
        case TranscriptFormat.VERBOSE_JSON:
            body = verbose_body(transcript, task="transcribe", segments=form.segments, words=form.words)
        case TranscriptFormat.DIARIZED_JSON:
            body = diarized_body(transcript)
        case _:
            body = json_body(transcript)
    return written(transcript, form.response_format, body, headers)


@router.post(
    "/translations",
    response_model=None,
    responses={**CALL_ERRORS, **answers(_JSON, streams=False)},
    openapi_extra=form_of("TranslationForm"),
)
async def create_translation(request: Request, caller: Caller, service: TranscriptionServiceDep) -> Response:
    """Transcribe a file into English, whatever is spoken."""
    session_id = bound_session(request, {})
    with _file_errors_as_openai():
        form, begun = await begin_transcription(request, service, caller, TranslationForm, session_id=session_id)
    headers = answer_headers(begun.run.model, begun.run.run_id, begun.run.session_id)
    transcript = await begun.whole(request)
    if form.response_format == "verbose_json":
        body = verbose_body(transcript.model_copy(update={"language": "english"}), task="translate")
    else:
        body = {"text": transcript.text}
    return written(transcript, TranscriptFormat(form.response_format), body, headers)


def written(transcript: Transcript, form: TranscriptFormat, body: dict[str, Any], headers: dict[str, str]) -> Response:
    """The answer in its form; `body` for those that are JSON."""
    if form in TEXTS:
        render, media_type = TEXTS[form]
        return Response(render(transcript), headers=headers, media_type=media_type)
    return Response(orjson.dumps(body), headers=headers, media_type="application/json")


@contextmanager
def _file_errors_as_openai() -> Iterator[None]:
    """OpenAI answers 400, and not 415, for a file that is no sound."""
    try:
        yield
    except UnsupportedMedia as error:
        if error.param is None:
            raise
        raise InvalidRequest(error.message, code=error.code, param=error.param) from error


async def _frames(begun: Begun) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(begun.run.pieces()) as pieces:
            async for piece in pieces:
                yield segment_frame(piece) if isinstance(piece, Segment) else delta_frame(piece)
        yield done_frame(begun.transcript())
    except RouteurError as error:
        yield error_frame(openai_body(error))
    except asyncio.CancelledError:
        yield error_frame(openai_body(Unavailable("The server is stopping.", code="server_stopping", retry_after=1)))
        raise
