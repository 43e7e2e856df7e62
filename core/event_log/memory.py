"""One process: whoever waits is told directly. Another process on the same SQLite file looks for itself."""

from collections.abc import Callable, Sequence

from domain.ports import SignalKind


class LocalSignals:
    """Nobody else to tell."""

    poll = 0.5  # seconds; for other processes on the same SQLite file

    def tell(self, kind: SignalKind, run_ids: Sequence[str] = ()) -> None:
        """Nobody hears it."""

    def hear(self, listener: Callable[[SignalKind, str], None]) -> None:
        """Nobody tells anything."""
