"""Settings of realtime sessions: how many, how long, how fast."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StringConstraints

from config.fields import OptionalText, SettingsGroup, TextList

IceUrl = Annotated[str, StringConstraints(pattern=r"^(stun|stuns|turn|turns):[^\s]+$", max_length=500)]


class IceServer(BaseModel):
    """A STUN or TURN server, as browsers write it."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    urls: Annotated[tuple[IceUrl, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    username: str | None = None
    credential: SecretStr | None = None


def _read_json(value: Any) -> Any:
    return json.loads(value or "[]") if isinstance(value, str) else value


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
    output: Literal["text", "audio"] = Field(
        "text",
        alias="REALTIME_OUTPUT",
        description="how answers are given in sessions that do not say; OpenAI's are spoken",
    )
    speech_model: OptionalText = Field(
        None, alias="REALTIME_SPEECH_MODEL", description="who speaks, `provider/name`; default: the first that can"
    )
    vad: Literal["auto", "webrtc", "silero"] = Field(
        "auto",
        alias="REALTIME_VAD",
        description="what tells who speaks: silero, with Smart Turn (extra voice), or webrtc (extra audio); auto: the "
        "first that is installed",
    )
    turn_seconds: float = Field(
        120,
        alias="REALTIME_TURN_SECONDS",
        ge=1,
        le=600,
        description="longest turn of a speaker: one that is longer is cut, or refused where the client commits",
    )
    ping_seconds: float = Field(
        20,
        alias="REALTIME_PING_SECONDS",
        gt=0,
        le=600,
        description="between two pings, and how long an answer to one is waited for",
    )
    ice_servers: Annotated[tuple[IceServer, ...], BeforeValidator(_read_json)] = Field(
        (),
        alias="REALTIME_ICE_SERVERS",
        description="STUN and TURN servers of WebRTC calls, as JSON: "
        '[{"urls": "turn:turn.example.org:3478", "username": "u", "credential": "p"}]; none: host candidates only',
    )
    connect_seconds: float = Field(
        15,
        alias="REALTIME_CONNECT_SECONDS",
        gt=0,
        le=300,
        description="a WebRTC peer whose data channel is not open by then is let go",
    )
    relay_models: TextList = Field(
        (),
        alias="REALTIME_RELAY_MODELS",
        description="models (provider/name) that speak the Realtime protocol themselves, besides those with 'realtime' "
        "in their names",
    )
