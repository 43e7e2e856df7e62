"""One process: whoever waits is told directly. Another process on the same SQLite file looks for itself."""

from collections.abc import Callable, Sequence

from domain.ports import SignalKind


class LocalSignals:
    """Nobody else to tell."""

    poll = 0.25  # seconds; a look into SQLite costs some microseconds

    def tell(self, kind: SignalKind, run_ids: Sequence[str] = ()) -> None:
        """Nobody hears it."""

    def hear(self, listener: Callable[[SignalKind, str], None]) -> None:
        """Nobody tells anything."""
