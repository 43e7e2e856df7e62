"""Our parameters under a vendor's names."""

from typing import Any

from domain.agents import ModelParameters


def given(parameters: ModelParameters, **names: str) -> dict[str, Any]:
    """Those that are set, each under the name that the vendor's class has for it."""
    found: dict[str, Any] = {}
    if parameters.response_format is not None:
        found["wanted_format"] = parameters.response_format.wire()
    for ours, theirs in names.items():
        value = getattr(parameters, ours)
        if value not in (None, ()):
            found[theirs] = list(value) if isinstance(value, tuple) else value
    return found
