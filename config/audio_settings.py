"""Settings of sound that is sent to us."""

from pydantic import Field

from config.fields import SettingsGroup


class AudioSettings(SettingsGroup):
    """How much sound is taken (extra: audio). MAX_UPLOAD_MB bounds the file itself."""

    max_seconds: float = Field(
        14_400, alias="MAX_AUDIO_SECONDS", gt=0, le=86_400, description="longest sound of one file; 4 hours"
    )
    decode_seconds: float = Field(
        120, alias="AUDIO_DECODE_SECONDS", gt=0, le=3_600, description="seconds that decoding one file may take"
    )
    threads: int = Field(
        2, alias="AUDIO_THREADS", ge=1, le=64, description="files decoded at once in one process; more wait their turn"
    )
