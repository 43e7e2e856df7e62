"""Tracing: LangSmith when asked for, and otherwise off, whatever the environment of the process says."""

import logging
import os

from config.settings import TracingSettings

logger = logging.getLogger(__name__)

_SWITCHES = ("LANGCHAIN_TRACING_V2", "LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING")


def apply_tracing(settings: TracingSettings) -> None:
    """Tell LangSmith's library, which reads only the process's environment, what the settings say."""
    for name in _SWITCHES:
        os.environ.pop(name, None)
    os.environ["LANGCHAIN_TRACING_V2"] = "true" if settings.enabled else "false"
    if settings.enabled:
        if settings.api_key is not None:
            os.environ["LANGCHAIN_API_KEY"] = settings.api_key.get_secret_value()
        logger.warning("tracing is on: prompts and answers are sent to LangSmith")
