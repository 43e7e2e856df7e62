"""Text at the border: what every store and every client can hold."""

import re

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
