"""The runs that go on in this process: how many, and what is told of each when it is over."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from core.metrics import Metrics
from domain.errors import RateLimited
from domain.events import AgentEvent, RunId, UsageReported

logger = logging.getLogger("services.agent_service")

_BUSY_RETRY = 1.0  # seconds; runs end all the time


class EndedRun(Protocol):
    """What is told of a run."""

    @property
    def run_id(self) -> RunId: ...
    @property
    def agent(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def calls(self) -> Sequence[UsageReported]: ...
    @property
    def gone(self) -> bool: ...


class OpenRuns:
    """Counts them, whatever way they are run by."""

    def __init__(self, metrics: Metrics, most: int) -> None:
        self._metrics = metrics
        self._most = most
        self._quiet = asyncio.Event()
        self.count = 0

    def check_room(self) -> None:
        """Raises:
        RateLimited: too many runs at once.
        """
        if self.count >= self._most:
            raise RateLimited("Too many runs at once; try again in a moment.", retry_after=_BUSY_RETRY)

    def started(self) -> None:
        """One more."""
        self.count += 1
        self._quiet.clear()
        self._metrics.runs_open = self.count

    def ended(self, run: EndedRun, terminal: AgentEvent | None, seconds: float, paused: str = "") -> None:
        """One less. `terminal` None: it has stopped before its end, and `paused` says why."""
        self.count -= 1
        if not self.count:
            self._quiet.set()
        self._metrics.runs_open = self.count
        if terminal is not None and not run.gone:
            self._metrics.run_ended(run.agent, terminal.kind.removeprefix("run."), seconds)
        for call in run.calls:
            self._metrics.model_called(call.model, call.usage)
        if logger.isEnabledFor(logging.INFO):
            outcome = terminal.kind if terminal else f"paused: {paused}"
            logger.info(
                "run ended" if terminal else "run paused",
                extra={"run_id": run.run_id, "agent": run.agent, "model": run.model, "outcome": outcome,
                       "seconds": round(seconds, 3)},
            )  # fmt: skip

    async def wait_for_silence(self, within: float) -> None:
        """Until none is left; `within` that many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.count:
                    await self._quiet.wait()
