"""Text at the border: what every store and every client can hold."""

import json
import re
from typing import Any

_MAX_DEPTH = 50  # levels of JSON that a caller may nest
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0080-\u009f\u2028\u2029]")


def clean_text(text: str) -> str:
    """`text` without NUL (PostgreSQL refuses it) and with lone surrogates replaced (UTF-8 cannot say them)."""
    if "\x00" in text:
        text = text.replace("\x00", "")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text


def one_line(text: str, limit: int = 500) -> str:
    """`text` fit for one line of a log: control characters escaped, cut at `limit` characters."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), cut)


def clean_json(value: Any, max_chars: int) -> Any:
    """`value` with every text in it cleaned.

    Raises:
        ValueError: it is larger than `max_chars` as JSON, deeper than 50 levels, or JSON cannot say it.
    """
    cleaned = _clean_json(value, 0)
    try:
        size = len(json.dumps(cleaned, allow_nan=False))
    except ValueError as error:
        raise ValueError("holds a number that JSON cannot say") from error
    if size > max_chars:
        raise ValueError(f"is larger than {max_chars} characters of JSON")
    return cleaned


def _clean_json(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"is deeper than {_MAX_DEPTH} levels")
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("holds an integer beyond 64 bit")
    if isinstance(value, dict):
        return {clean_text(str(key)): _clean_json(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean_json(one, depth + 1) for one in value]
    return value
