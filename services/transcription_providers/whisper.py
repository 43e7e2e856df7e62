"""Whisper on this machine, by faster-whisper: `whisper/<folder>`, its weights in WHISPER_MODELS_DIR.

Each model is loaded once, when first asked for, and stays. Nothing is ever downloaded.
"""

import asyncio
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.audio.threads import AudioThreads, stop_asked
from domain.audio import PCM_SCALE, Segment, SpanTranscript, TranscriptionOptions, Word
from domain.errors import InvalidRequest, ModelNotFound, RouteurError, Unavailable
from domain.text import clean_text
from services.llm_providers.whisper import folders
from services.transcription_providers.base import BaseTranscriber, Sound, Surroundings

_LONGEST = 600.0  # seconds: parts run side by side, and one that is given up ends soon
_MOST_THREADS = 4
