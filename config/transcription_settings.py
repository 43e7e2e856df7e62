"""Settings of transcription: who listens, and how many at once."""

from pydantic import Field

from config.fields import OptionalPath, OptionalSeconds, OptionalText, SettingsGroup


class TranscriptionSettings(SettingsGroup):
    """Who turns speech into text, and how much of it at once."""

    model: OptionalText = Field(
        None,
        alias="TRANSCRIPTION_MODEL",
        description="provider/name; unset: whisper-1, voxtral or whatever the first configured provider has",
    )
    parallel: int = Field(
        4, alias="TRANSCRIPTION_PARALLEL", ge=1, le=64, description="parts of one file that are transcribed at once"
    )
    at_once: int = Field(
        16, alias="TRANSCRIPTION_AT_ONCE", ge=1, le=1_000, description="parts of all files at once, in one process"
    )
    part_seconds: OptionalSeconds = Field(
        None,
        alias="TRANSCRIPTION_PART_SECONDS",
        description="longest part of a file, in seconds, where the provider takes longer ones; cut at silences",
    )
    time_limit: float = Field(
        600, alias="TRANSCRIPTION_TIME_LIMIT", gt=0, le=86_400, description="seconds for one request, decoding included"
    )
    sync_seconds: OptionalSeconds = Field(
        3_600,
        alias="AUDIO_SYNC_SECONDS",
        description="longest sound that somebody may wait for, in seconds; longer ones are run in the background",
    )
    background_part_seconds: float = Field(
        180,
        alias="TRANSCRIPTION_BACKGROUND_PART_SECONDS",
        ge=2,
        le=86_400,
        description="longest part in the background, in seconds: what a crash may cost, and a step of the progress",
    )
    background_time_limit: float = Field(
        21_600,
        alias="TRANSCRIPTION_BACKGROUND_TIME_LIMIT",
        gt=0,
        le=86_400,
        description="seconds of running for one file in the background, over all attempts",
    )
    whisper_models_dir: OptionalPath = Field(
        None,
        alias="WHISPER_MODELS_DIR",
        description="folders of CTranslate2 Whisper models, called as whisper/<folder> (extra: whisper)",
    )
    whisper_at_once: int = Field(
        1, alias="WHISPER_AT_ONCE", ge=1, le=64, description="transcriptions at once of each of those models"
    )
    whisper_threads: int = Field(
        0,
        alias="WHISPER_THREADS",
        ge=0,
        le=256,
        description="processor threads of each; 0: as many as cores, at most 4",
    )
    whisper_compute_type: str = Field(
        "default", alias="WHISPER_COMPUTE_TYPE", description="int8, float16, ...; default: as the weights were saved"
    )
    offline_processes: int = Field(
        2,
        alias="OFFLINE_SPEECH_PROCESSES",
        ge=1,
        le=64,
        description="processes of offline/pocketsphinx, started when first needed (its library would block the server)",
    )
