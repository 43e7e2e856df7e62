"""Settings of realtime sessions: how many, how long, how fast."""

from pydantic import Field

from config.fields import SettingsGroup


class RealtimeSettings(SettingsGroup):
    """Realtime sessions: what one socket, one user and one process may take."""

    per_user: int = Field(
        50, alias="REALTIME_MAX_PER_USER", ge=1, le=100_000, description="open sessions of one user in one process"
    )
    sessions: int = Field(
        2_000, alias="REALTIME_MAX_SESSIONS", ge=1, le=1_000_000, description="open sessions in one process"
    )
    max_frame_mb: float = Field(
        5, alias="REALTIME_MAX_FRAME_MB", gt=0, le=64, description="largest event, in MB; a larger one closes with 1009"
    )
    idle_seconds: float = Field(
        900,
        alias="REALTIME_IDLE_SECONDS",
        gt=0,
        le=86_400,
        description="a session in which nothing is said for so long is closed",
    )
    total_seconds: float = Field(
        3_600, alias="REALTIME_TOTAL_SECONDS", gt=0, le=86_400, description="no session lasts longer (OpenAI: 60 min)"
    )
    events_per_second: float = Field(
        200,
        alias="REALTIME_EVENTS_PER_SECOND",
        gt=0,
        le=100_000,
        description="of one client; faster ones are read more slowly (20 ms of audio each are 50)",
    )
    outbox_kb: int = Field(
        256,
        alias="REALTIME_OUTBOX_KB",
        ge=16,
        le=65_536,
        description="what waits for a slow reader, in kB, before its source is paused",
    )
    slow_seconds: float = Field(
        10,
        alias="REALTIME_SLOW_SECONDS",
        gt=0,
        le=600,
        description="a reader that takes nothing for so long is closed with 1013",
    )
    ping_seconds: float = Field(
        20,
        alias="REALTIME_PING_SECONDS",
        gt=0,
        le=600,
        description="between two pings, and how long an answer to one is waited for",
    )
