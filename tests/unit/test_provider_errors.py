"""What providers say of their failures, in every shape they say it in."""

import time
from email.utils import formatdate

import pytest

from core.provider_errors import failure_of, provider_words, retry_after_of
from domain.errors import ErrorKind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "999999999"}, 86_400),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after-ms": "inf"}, None),
        ({"retry-after-ms": "-5"}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "Wed, 99 Oct 99999 07:28:00 GMT"}, None),
    ],
)
def test_when_to_come_back(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_of(headers) == seconds


def test_a_date_is_counted_from_now() -> None:
    told = retry_after_of({"retry-after": formatdate(time.time() + 60, usegmt=True)})
    assert told is not None
    assert 55 < told <= 60


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b'{"error": {"code": "rate_limit", "message": "slow"}}', "rate_limit", "slow"),
        (b'{"error": {"type": "server_error"}}', "server_error", "{'type': 'server_error'}"),
        (b'{"error": "overloaded"}', "", "overloaded"),
        (b'{"code": 1001, "message": "flat"}', "1001", "flat"),
        (b"[1, 2]", "", "[1, 2]"),
        (b"<html>", "", "<html>"),
        (b"\xff", "", "\ufffd"),
        (b"", "", ""),
    ],
)
def test_a_providers_words_are_found_whatever_their_shape(body: bytes, code: str, said: str) -> None:
    assert provider_words(body) == (code, said)


@pytest.mark.parametrize("status", [400, 413, 422, 501])
def test_what_a_provider_does_not_do_is_the_callers_to_mend(status: int) -> None:
    failure = failure_of("llamacpp", status, "", "does not support embeddings", None, model="llamacpp/m", setting="X")
    assert (failure.kind, failure.code) == (ErrorKind.INVALID, "provider_refused")
    assert "support" not in failure.message, "its own words stay in our log"
