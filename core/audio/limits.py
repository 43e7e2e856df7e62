"""How much sound one file may hold, and how long it may keep us busy."""

from dataclasses import dataclass
from typing import Self

from config.settings import Settings


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """Bounds of one decode. `max_seconds` counts what comes out, whatever the file says of itself."""

    max_bytes: int = 25_000_000
    max_seconds: float = 14_400
    max_channels: int = 8
    min_rate: int = 4_000
    max_rate: int = 192_000
    #: Wall time.
    decode_seconds: float = 120
    #: In a row: damaged files that would be read to their end for nothing.
    max_packets_without_samples: int = 5_000

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The bounds that the settings ask for."""
        return cls(
            max_bytes=int(settings.server.max_upload_mb * 1_000_000),
            max_seconds=settings.audio.max_seconds,
            decode_seconds=settings.audio.decode_seconds,
        )
