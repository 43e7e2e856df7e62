"""What lists have in common: pages, and filters by metadata."""

import re
from typing import Annotated

from fastapi import Query, Request

from domain.errors import FieldError, InvalidRequest

Limit = Annotated[int, Query(ge=1, le=200, description="how many at most")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")]
After = Annotated[
    int, Query(ge=-1, le=2**31 - 1, description="`next_after` of the page before; -1: from the beginning")
]

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PREFIX = "metadata."
_MAX_FILTERS = 8
_MAX_VALUE = 512
#: For `openapi_extra`: FastAPI cannot declare a parameter whose name is open.
METADATA_FILTER = {
    "parameters": [
        {
            "name": "metadata.{key}",
            "in": "query",
            "required": False,
            "description": "only those whose metadata has this value under this key, compared as text; may be repeated "
            "with other keys: `?metadata.dossier_id=dossier:abc123`",
            "schema": {"type": "string", "maxLength": _MAX_VALUE},
        }
    ]
}


def metadata_filter(request: Request) -> dict[str, str]:
    """The `metadata.<key>=<value>` of a query.

    Raises:
        InvalidRequest: a key that no metadata can have, a key twice, or too many.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if not name.startswith(_PREFIX):
            continue
        key = name.removeprefix(_PREFIX)
        if not _KEY.fullmatch(key) or key in found or len(found) >= _MAX_FILTERS or len(value) > _MAX_VALUE:
            raise InvalidRequest(
                f"metadata filters are metadata.<key>=<value>, at most {_MAX_FILTERS}, each key once.",
                param=name[:100],
                errors=[FieldError(name[:100], "not a metadata filter")],
            )
        if "\x00" in value:
            raise InvalidRequest("A metadata value has no NUL.", param=name)
        found[key] = value
    return found
