"""What of hearing and speaking there is on this machine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

from config.realtime_settings import RealtimeSettings
from core.metrics import Metrics
from domain.ports import RecordStore
from services.realtime.seams import VoiceSeams
from services.realtime.voice.listening import TranscriptionListener
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
    """
    listener = TranscriptionListener(transcription, store, metrics, live)
    try:
        yield VoiceSeams(
            listener=listener,
            follower=listener,
            speaker=ServiceSpeaker(speech, settings.speech_model),
            detectors=VoiceTurnDetectors(settings.turn_seconds) if find_spec("webrtcvad") else None,
            speaks_first=settings.output == "audio",
            turn_seconds=settings.turn_seconds,
        )
    finally:
        await listener.aclose()
