"""A log line is one line, holds no secret, and cannot be forged."""

import io
import json
import logging

import pytest

from config.settings import LogSettings
from core.logging import JsonFormatter, TextFormatter, redact, request_id, setup_logging

SECRETS = [
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZG1pbiJ9.c2lnbmF0dXJl",
    "sk-proj-abcdefghijklmnop",
    "rk_Zm9vYmFyYmF6cXV4cXV1eA",
    "rt_Zm9vYmFyYmF6cXV4cXV1eA",
    "hf_abcdefghijklmnopqrstuv",
]


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("test", logging.WARNING, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter(colour=False)], ids=["json", "text"])
def test_no_credential_is_ever_in_a_line(secret: str, formatter: logging.Formatter) -> None:
    for made in (record(f"said {secret} loudly"), record("said %s", secret), record("said", what=secret)):
        line = formatter.format(made)
        assert secret not in line
        assert "[redacted]" in line


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("postgresql://user:hunter2@host/db", "hunter2"),
        ("https://x/?api_key=abc123&y=1", "abc123"),
    ],
)
def test_credentials_are_known_by_where_they_stand(text: str, kept: str) -> None:
    assert kept not in redact(text)


def test_ordinary_words_are_left_alone() -> None:
    for text in ("the bearer of news", "task_123 done", "risk-averse", "GET /models/openai/gpt-4o 200"):
        assert redact(text) == text


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter(colour=False)], ids=["json", "text"])
@pytest.mark.parametrize("breaker", ["\n", "\r\n", "\r", "\x1b[2J", "\u2028", "\x00", "\x85"])
def test_a_caller_cannot_write_a_second_line(formatter: logging.Formatter, breaker: str) -> None:
    line = formatter.format(record("path %s", f"/x{breaker}ERROR forged", detail=f"a{breaker}b"))
    assert len(line.splitlines()) == 1
    assert breaker not in line


def test_a_json_line_carries_its_request_and_its_fields() -> None:
    token = request_id.set("req_1")
    try:
        line = json.loads(JsonFormatter().format(record("hello", seconds=1.5, odd=object())))
    finally:
        request_id.reset(token)
    assert (line["message"], line["level"], line["seconds"], line["request_id"]) == ("hello", "WARNING", 1.5, "req_1")
    assert line["at"].endswith("Z")


def test_the_trace_of_an_error_is_logged_and_redacted() -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        setup_logging(LogSettings(format="json"), stream=stream)
        try:
            raise ValueError(f"bad key {SECRETS[1]}")
        except ValueError:
            logging.getLogger("test").exception("it broke")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: bad key [redacted]" in json.loads(line)["trace"]
