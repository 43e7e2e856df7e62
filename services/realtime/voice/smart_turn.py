"""Smart Turn v3, the model: has who paused said all? The only module that knows pipecat.

Only `models.py` imports it: pipecat prints when it is imported, and changes asyncio.
"""

import asyncio
from typing import Any

from pipecat.audio.turn.base_turn_analyzer import EndOfTurnState
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3

from domain.audio import SAMPLE_RATE


class SmartTurn:
    """The model, for one judgement at a time. Making one blocks for 0.1 s and takes 30 MB, the next ones 10 MB.

    Raises:
        Exception: pipecat's or onnxruntime's own; it cannot be loaded.
    """

    def __init__(self) -> None:
        self._analyzer: Any = LocalSmartTurnAnalyzerV3(sample_rate=SAMPLE_RATE)

    def judge(self, pcm: bytes) -> bool:
        """Is that (mono, 16 kHz; its last 8 s count) all that somebody wants to say? It blocks for 0.1 s.

        Never call it on the event loop: pipecat's method is a coroutine that gets a loop of its own here.
        """
        self._analyzer.clear()
        self._analyzer.append_audio(pcm, is_speech=True)
        state, _ = asyncio.run(self._analyzer.analyze_end_of_turn())
        return state is EndOfTurnState.COMPLETE
