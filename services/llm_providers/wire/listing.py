"""`GET /models` as OpenAI-compatible servers answer it."""

from collections.abc import Iterator
from typing import Any

from core.http import ProviderClient


async def listed_entries(client: ProviderClient, within: float) -> list[dict[str, Any]]:
    """The entries that have an id, whatever else they hold.

    Raises:
        RouteurError: the server does not answer, or not with a list.
    """
    body = await client.get_json("/models", within=within)
    data = body.get("data") if isinstance(body, dict) else body
    if not isinstance(data, list):
        raise client.unreadable("a list of models without data")
    return list(_named(data))


def _named(data: list[Any]) -> Iterator[dict[str, Any]]:
    for entry in data:
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]:
            yield entry
