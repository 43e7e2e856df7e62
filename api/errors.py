"""One failure, four faces: the only table from `ErrorKind` to status, OpenAI type and WebSocket close code.

Native routes answer RFC 9457 problem+json, `/v1` the OpenAI error body. Nothing here tells a trace, a path, a secret
or the caller's own input.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from core.logging import request_id
from domain.errors import ErrorKind, FieldError, InternalError, InvalidRequest, NotFound, RouteurError, TooLarge
from domain.text import clean_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Face:
    """How one kind of failure looks outside. `openai_status` differs where OpenAI's clients expect another."""

    status: int
    title: str
    openai_type: str
    close_code: int
    openai_status: int | None = None


FACES: Mapping[ErrorKind, Face] = {
    ErrorKind.INVALID: Face(422, "The request is not valid", "invalid_request_error", 1007, 400),
    ErrorKind.MALFORMED: Face(400, "The cursor is not valid", "invalid_request_error", 1007, 400),
    ErrorKind.UNAUTHENTICATED: Face(401, "Not authenticated", "authentication_error", 4401),
    ErrorKind.FORBIDDEN: Face(403, "Not allowed", "permission_error", 4403),
    ErrorKind.NOT_FOUND: Face(404, "Not found", "invalid_request_error", 4404),
    ErrorKind.CONFLICT: Face(409, "In conflict with the current state", "invalid_request_error", 4409),
    ErrorKind.TOO_LARGE: Face(413, "Too large", "invalid_request_error", 1009),
    ErrorKind.UNSUPPORTED_MEDIA: Face(415, "Unsupported media type", "invalid_request_error", 1009),
    ErrorKind.RATE_LIMITED: Face(429, "Too many requests", "rate_limit_error", 4429),
    ErrorKind.QUOTA: Face(429, "Quota exceeded", "insufficient_quota", 4429),
    ErrorKind.UPSTREAM_FAILURE: Face(502, "A provider failed", "api_error", 1011),
    ErrorKind.UPSTREAM_TIMEOUT: Face(504, "It took too long", "api_error", 1011),
    ErrorKind.UNAVAILABLE: Face(503, "Not available", "api_error", 1013),
    ErrorKind.INTERNAL: Face(500, "Internal error", "api_error", 1011),
}


_FIELD_CHARS = 100  # of a place; the caller has named parts of it
#: Pydantic's own words for these hold the input.
_MESSAGES = {"union_tag_invalid": "It has a type or a role that is not known here"}

#: Failures before which a model has answered, and was paid.
_PAID = frozenset({"upstream_cut", "upstream_unreadable", "agent_failed", "recursion_limit"})


class ProblemField(BaseModel):
    """One field that was wrong."""

    field: str = Field(examples=["body.temperature"])
    message: str
    code: str


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is for programs, `request_id` finds the lines in our log."""

    type: str = "about:blank"
    title: str = Field(examples=["Not found"])
    status: int = Field(examples=[404])
    detail: str
    code: str = Field(examples=["model_not_found"])
    param: str | None = None
    request_id: str | None = None
    errors: list[ProblemField] = Field(default_factory=list)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer besides success, for the OpenAPI document."""
    titles = {face.status: face.title for face in reversed(list(FACES.values()))}
    schema = {"$ref": "#/components/schemas/Problem"}  # `api/openapi.py` adds the schema itself, once
    return {
        status: {"description": titles[status], "content": {"application/problem+json": {"schema": schema}}}
        for status in statuses
    }


class OpenAIErrorDetail(BaseModel):
    """What OpenAI's clients read; all four are always there."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """Any failure under /v1."""

    error: OpenAIErrorDetail


def openai_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route under /v1 may answer besides success, for the OpenAPI document."""
    titles = {face.openai_status or face.status: face.title for face in reversed(list(FACES.values()))}
    titles[400] = FACES[ErrorKind.INVALID].title
    return {status: {"description": titles[status], "model": OpenAIError} for status in statuses}


def error_response(
    error: RouteurError, *, openai: bool = False, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """`error` as an HTTP answer in the caller's dialect; `status` only where HTTP itself has a closer word."""
    face = FACES[error.kind]
    status = status or ((face.openai_status or face.status) if openai else face.status)
    headers = {**(headers or {}), "cache-control": "no-store"}
    if error.kind is ErrorKind.UNAUTHENTICATED:
        headers["www-authenticate"] = 'Bearer realm="routeur"'
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if openai and not _worth_repeating(error):
        headers["x-should-retry"] = "false"
    body = openai_body(error) if openai else problem_body(error, status)
    media_type = "application/json" if openai else "application/problem+json"
    return Response(orjson.dumps(body), status, headers, media_type)


def _worth_repeating(error: RouteurError) -> bool:
    """False: OpenAI's SDK, which repeats conflicts and 5xx by itself, would find the same, or pay a model again."""
    return error.kind not in (ErrorKind.CONFLICT, ErrorKind.UPSTREAM_TIMEOUT) and error.code not in _PAID


def problem_body(error: RouteurError, status: int) -> dict[str, Any]:
    """The RFC 9457 body."""
    return {
        "type": "about:blank",
        "title": FACES[error.kind].title,
        "status": status,
        "detail": clean_text(error.message),
        "code": error.code,
        "param": error.param,
        "request_id": request_id.get(),
        "errors": [{"field": one.field, "message": one.message, "code": one.code} for one in error.errors],
    }


def openai_body(error: RouteurError) -> dict[str, Any]:
    """The body that OpenAI's clients turn into their exceptions."""
    kind = FACES[error.kind].openai_type
    param = "model" if error.param == "agent" else error.param  # there an agent is called by that name
    return {"error": {"message": clean_text(error.message), "type": kind, "param": param, "code": error.code}}


def install_error_handlers(app: FastAPI) -> None:
    """Make every failure of `app` speak with one of the faces above."""

    async def on_invalid(request: Request, error: Exception) -> Response:
        details = error.errors() if isinstance(error, RequestValidationError) else []
        return error_response(invalid_request(details), openai=_speaks_openai(request))

    async def on_http_exception(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        openai = _speaks_openai(request)
        if status == 405:
            return error_response(
                InvalidRequest("This address does not take that method.", code="method_not_allowed"),
                openai=openai,
                status=405,
                headers=getattr(error, "headers", None),
            )
        if status == 404:
            return error_response(NotFound("There is nothing at this address."), openai=openai)
        failure: RouteurError = InvalidRequest("The request could not be read.", code="unreadable")
        if status == 413:
            failure = TooLarge("The body is too large.")
        elif status >= 500:
            failure = InternalError()
        return error_response(failure, openai=openai)

    app.add_exception_handler(RouteurError, on_routeur_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_unexpected)


async def on_routeur_error(request: Request, error: Exception) -> Response:
    """A failure that has a name."""
    failure = error if isinstance(error, RouteurError) else InternalError()
    if failure.kind is ErrorKind.INTERNAL:
        logger.error("request failed", exc_info=error)
    return error_response(failure, openai=_speaks_openai(request))


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours: all of it to the log, none of it to the caller."""
    logger.error("unexpected error", exc_info=error, extra={"path": request.scope.get("path", "")})
    return error_response(InternalError(), openai=_speaks_openai(request))


def invalid_request(details: Iterable[Mapping[str, Any]]) -> InvalidRequest:
    """Pydantic's findings as ours: the place and the reason, never the input."""
    fields = [
        FieldError(
            field=clean_text(".".join(str(part) for part in one["loc"]))[:_FIELD_CHARS],
            message=clean_text(_MESSAGES.get(one["type"]) or str(one["msg"]).removeprefix("Value error, "))[:500],
            code=str(one["type"]),
        )
        for one in list(details)[:50]
    ]
    named = "; ".join(f"{one.field}: {one.message}" if one.field else one.message for one in fields[:3])
    param = fields[0].field.removeprefix("body.") if fields else None
    return InvalidRequest(
        f"The request is not valid. {named}".strip(), code="invalid_request", param=param, errors=fields
    )


def _speaks_openai(request: Request) -> bool:
    path: str = request.scope.get("path", "")
    return path == "/v1" or path.startswith("/v1/")
