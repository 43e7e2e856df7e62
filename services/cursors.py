"""Places in lists that are ordered newest first, as one opaque word."""

import base64
import binascii
from datetime import UTC, datetime

from domain.errors import InvalidRequest
from domain.runs import Cursor


def encode_cursor(at: datetime, row_id: str) -> str:
    """A place in a list, newest first, as one opaque word."""
    return base64.urlsafe_b64encode(f"{at.isoformat()}|{row_id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> Cursor | None:
    """The place again.

    Raises:
        InvalidRequest: it is none of ours.
    """
    if cursor is None:
        return None
    try:
        at, _, row_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition("|")
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None:
            raise ValueError("ours have a zone")
        moment = moment.astimezone(UTC)
    except (binascii.Error, ValueError, OverflowError) as error:
        raise InvalidRequest("This cursor is none of ours.", param="cursor") from error
    if not row_id or len(row_id) > 64 or not row_id.isascii() or "\x00" in row_id:
        raise InvalidRequest("This cursor is none of ours.", param="cursor")
    return Cursor(moment, row_id)
