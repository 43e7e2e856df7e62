"""What of hearing and speaking there is on this machine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

from config.realtime_settings import RealtimeSettings
from config.settings import SettingsError
from core.metrics import Metrics
from domain.ports import RecordStore
from services.realtime.seams import VoiceSeams
from services.realtime.voice import models
from services.realtime.voice.activity import WebRtcActivity
from services.realtime.voice.listening import TranscriptionListener
from services.realtime.voice.models import VoiceModels
from services.realtime.voice.speaking import ServiceSpeaker
from services.realtime.voice.turns import VoiceTurnDetectors
from services.speech_service import SpeechService
from services.transcription_service import TranscriptionService


@asynccontextmanager
async def open_voice(
    settings: RealtimeSettings,
    transcription: TranscriptionService,
    speech: SpeechService,
    store: RecordStore,
    metrics: Metrics,
    *,
    live: int,
) -> AsyncIterator[VoiceSeams]:
    """Ears and voice of realtime sessions, until the context ends.

    Args:
        live: processes that listen while somebody speaks.

    Raises:
        SettingsError: REALTIME_VAD names what is not installed.
    """
    _check(settings)
    told_by = VoiceModels() if settings.vad != "webrtc" and models.installed() else None
    listener = TranscriptionListener(transcription, store, metrics, live)
    try:
        yield VoiceSeams(
            listener=listener,
            follower=listener,
            speaker=ServiceSpeaker(speech, settings.speech_model),
            detectors=_detectors(settings.turn_seconds, told_by),
            prepare=told_by.prepare if told_by is not None else None,
            speaks_first=settings.output == "audio",
            turn_seconds=settings.turn_seconds,
        )
    finally:
        if told_by is not None:
            told_by.close()
        await listener.aclose()


def _check(settings: RealtimeSettings) -> None:
    if settings.vad == "silero" and not models.installed():
        raise SettingsError("REALTIME_VAD=silero needs the extra: uv sync --extra voice")
    if settings.vad == "webrtc" and not find_spec("webrtcvad"):
        raise SettingsError("REALTIME_VAD=webrtc needs the extra: uv sync --extra audio")


def _detectors(longest_seconds: float, told_by: VoiceModels | None) -> VoiceTurnDetectors | None:
    """Who tells turns: the models where there are some, else webrtcvad, else nobody."""
    if told_by is not None:
        return VoiceTurnDetectors(longest_seconds, told_by.activity, told_by.judge)
    return VoiceTurnDetectors(longest_seconds, WebRtcActivity) if find_spec("webrtcvad") else None
