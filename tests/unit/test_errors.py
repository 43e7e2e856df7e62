"""One failure, four faces: the table of the architecture, and nothing told that should not be."""

import orjson
import pytest

from api.errors import FACES, error_response, invalid_request, openai_body
from domain.errors import (
    AgentNotFound,
    Conflict,
    ErrorKind,
    Forbidden,
    InternalError,
    InvalidRequest,
    Malformed,
    ModelNotFound,
    NotFound,
    QuotaExceeded,
    RateLimited,
    RouteurError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
    UpstreamFailure,
    UpstreamTimeout,
)

TABLE = [
    (InvalidRequest("x"), 422, 400, "invalid_request_error", 1007),
    (Malformed("x"), 400, 400, "invalid_request_error", 1007),
    (Unauthenticated("x"), 401, 401, "authentication_error", 4401),
    (Forbidden("x"), 403, 403, "permission_error", 4403),
    (NotFound("x"), 404, 404, "invalid_request_error", 4404),
    (ModelNotFound("x"), 404, 404, "invalid_request_error", 4404),
    (AgentNotFound("x"), 404, 404, "invalid_request_error", 4404),
    (Conflict("x"), 409, 409, "invalid_request_error", 4409),
    (TooLarge("x"), 413, 413, "invalid_request_error", 1009),
    (UnsupportedMedia("x"), 415, 415, "invalid_request_error", 1009),
    (RateLimited("x"), 429, 429, "rate_limit_error", 4429),
    (QuotaExceeded("x"), 429, 429, "insufficient_quota", 4429),
    (UpstreamFailure("x"), 502, 502, "api_error", 1011),
    (UpstreamTimeout("x"), 504, 504, "api_error", 1011),
    (Unavailable("x"), 503, 503, "api_error", 1013),
    (InternalError(), 500, 500, "api_error", 1011),
]


def test_every_kind_has_a_face() -> None:
    assert set(FACES) == set(ErrorKind)
    assert {error.kind for error, *_ in TABLE} == set(ErrorKind)


@pytest.mark.parametrize(("error", "native", "v1", "kind", "close"), TABLE, ids=lambda one: type(one).__name__)
def test_each_failure_looks_as_its_reader_expects(
    error: RouteurError, native: int, v1: int, kind: str, close: int
) -> None:
    problem = error_response(error)
    assert problem.status_code == native
    assert problem.headers["content-type"] == "application/problem+json"
    body = orjson.loads(problem.body)
    assert (body["status"], body["code"]) == (native, error.code)
    dialect = error_response(error, openai=True)
    assert dialect.status_code == v1
    assert dialect.headers["content-type"] == "application/json"
    inner = orjson.loads(dialect.body)["error"]
    assert set(inner) == {"message", "type", "param", "code"}
    assert inner["type"] == kind
    assert FACES[error.kind].close_code == close


def test_who_must_wait_or_log_in_is_told_how() -> None:
    assert error_response(RateLimited("x", retry_after=2.4)).headers["retry-after"] == "2"
    assert error_response(RateLimited("x", retry_after=0.1)).headers["retry-after"] == "1"
    assert error_response(Unauthenticated("x")).headers["www-authenticate"].startswith("Bearer")


def test_what_is_wrong_is_named_and_the_input_is_not_repeated() -> None:
    found = invalid_request(
        [{"loc": ("body", "temperature"), "msg": "Value error, too hot", "type": "value_error", "input": "hunter2"}]
    )
    assert (found.param, found.errors[0].field, found.errors[0].message) == (
        "temperature",
        "body.temperature",
        "too hot",
    )
    assert b"hunter2" not in bytes(error_response(found).body)


def test_odd_text_does_not_break_the_answer() -> None:
    found = invalid_request([{"loc": ("body", "\ud800\x00"), "msg": "\udfff", "type": "x"}] * 200)
    assert len(orjson.loads(error_response(found).body)["errors"]) == 50
    assert openai_body(ModelNotFound("\ud800" * 10))["error"]["code"] == "model_not_found"
