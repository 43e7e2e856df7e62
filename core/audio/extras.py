"""The packages of the extra `audio`: they are imported when sound first comes, never at the start of the app."""

import importlib
from typing import Any

from domain.errors import Unavailable


def need(package: str) -> Any:
    """That package, imported.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise Unavailable(
            "Audio is not installed here. Install it with: uv sync --extra audio", code="audio_not_installed"
        ) from None
