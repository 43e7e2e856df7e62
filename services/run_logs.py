"""What an agent's own code logs becomes part of its run: lines with their time, beside the process's own log."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from core.logging import safe_line
from services.agent_stream import RunStream
from services.model_stream import current_listener

_MAX_CHARS = 4_000
#: What the house and its libraries say of themselves is not the agent's word.
_NOT_ITS_OWN = frozenset(
    {"services", "core", "api", "config", "domain", "app", "cli", "uvicorn", "asyncio", "aiohttp", "aiosqlite"}
    | {"sqlalchemy", "alembic", "psycopg", "procrastinate", "redis", "httpx", "httpcore", "httpx2", "openai"}
    | {"langchain", "langchain_core", "langgraph", "langsmith", "concurrent"}
)


class RunLogHandler(logging.Handler):
    """Hands each line to the run in whose context it was logged, from whatever thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.INFO)
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the run, if there is one."""
        run = current_listener.get()
        if not isinstance(run, RunStream) or record.name.partition(".")[0] in _NOT_ITS_OWN:
            return
        line = (record.levelname, safe_line(record.name, 200), safe_line(record.getMessage(), _MAX_CHARS))
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._loop.call_soon_threadsafe(run.logged, *line)
        else:
            run.logged(*line)


@contextmanager
def run_logs() -> Iterator[None]:
    """Listen to every logger until the context ends."""
    handler = RunLogHandler(asyncio.get_running_loop())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def stop_the_agent(seconds: float) -> BaseException | None:
    """The verdict on code that holds up the loop (`core.loop_guard.Verdict`): agents are stopped, nobody else."""
    run = current_listener.get()
    return run.blocked(seconds) if isinstance(run, RunStream) else None
