"""Structured logs through the standard library: one line per record, no secret in it, no way to forge a second line."""

import logging
import re
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

from config.settings import LogSettings
from domain.text import one_line

#: Set by the request-id middleware; every line written while a request is handled carries it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_SECRETS = re.compile(
    r"""(?x)
    eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*   # a JSON Web Token
    | \b(?:sk|rk|rt|pk|gsk|xai|hf|lsv2)[-_][A-Za-z0-9_-]{8,}    # provider keys, our API keys and refresh tokens
    | (?<=[Bb]earer\s)[^\s"',;]{6,}
    | (?<=[Bb]asic\s)[A-Za-z0-9+/=]{6,}
    | (?<=://)[^/\s:@]{1,100}:[^/\s@]{1,200}(?=@)             # user:password@ in an address
    | (?i:(?<=password=)|(?<=api_key=)|(?<=token=)|(?<=secret=))[^\s&"',;]+
    """
)
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
_COLOURS = {
    "DEBUG": "\x1b[2m",
    "INFO": "\x1b[36m",
    "WARNING": "\x1b[33m",
    "ERROR": "\x1b[31m",
    "CRITICAL": "\x1b[1;31m",
}


def redact(text: str) -> str:
    """`text` with everything that looks like a credential replaced by `[redacted]`."""
    return _SECRETS.sub("[redacted]", text)


def safe_line(text: str, limit: int = 8_000) -> str:
    """`text` fit for a log: redacted, control characters escaped, bounded."""
    return redact(one_line(text, limit))


def setup_logging(settings: LogSettings, *, debug: bool = False, stream: TextIO | None = None) -> None:
    """Send every logger of the process, uvicorn's too, through one handler in the chosen format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(make_formatter(settings.format, colour=(stream or sys.stderr).isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("DEBUG" if debug else settings.level)
    # None of these is in our lines, and each costs a look-up for each record (the logging HOWTO's own advice).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # our own access log says more
    for name in ("httpx", "httpcore", "openai", "aiosqlite", "alembic", "asyncio", "procrastinate", "psycopg.pool"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its lines quote what servers and callers sent; each failure is told by us, without that.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)


def make_formatter(kind: Literal["json", "text"], *, colour: bool = False) -> logging.Formatter:
    """The formatter of that name."""
    return JsonFormatter() if kind == "json" else TextFormatter(colour=colour)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, logger, message, request_id, what `extra=` gave, and the trace of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        entry: dict[str, object] = {
            "at": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": safe_line(record.getMessage()),
        }
        if current := request_id.get():
            entry["request_id"] = current
        for key, value in _extras(record).items():
            entry.setdefault(key, safe_line(value) if isinstance(value, str) else value)
        if trace := _trace(record):
            entry["trace"] = redact(trace)
        return orjson.dumps(
            entry, default=lambda value: safe_line(repr(value)), option=orjson.OPT_NON_STR_KEYS
        ).decode()


class TextFormatter(logging.Formatter):
    """A line for human eyes; the trace of an error follows it, indented."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        level = f"{record.levelname:<7}"
        if self._colour:
            level = f"{_COLOURS.get(record.levelname, '')}{level}\x1b[0m"
        parts = [_moment(record)[11:23], level, safe_line(record.getMessage())]
        parts += [f"{key}={safe_line(str(value), 500)}" for key, value in _extras(record).items()]
        if current := request_id.get():
            parts.append(f"request_id={current}")
        if trace := _trace(record):
            parts.append("\n    " + redact(trace).replace("\n", "\n    "))
        return " ".join(parts)


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


def _trace(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    return "".join(traceback.format_exception(record.exc_info[1])).rstrip()
