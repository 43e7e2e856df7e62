"""How a session stands: what its client has set, what it is shown, and what each response takes of it."""

from typing import Any

from domain.errors import InvalidRequest
from domain.targets import Target
from services.realtime.schemas import (
    Audio,
    AudioFormat,
    InputAudio,
    ResponseParameters,
    SessionParameters,
    TranscriptionParameters,
    checked,
)
from services.realtime.seams import VoiceSeams

PCM: dict[str, Any] = {"type": "audio/pcm", "rate": 24000}
_VAD: dict[str, Any] = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "idle_timeout_ms": None,
    "create_response": True,
    "interrupt_response": True,
}
_SEMANTIC: dict[str, Any] = {
    "type": "semantic_vad",
    "eagerness": "auto",
    "create_response": True,
    "interrupt_response": True,
}
_SPOKEN: dict[str, Any] = {"speed": 1.0, "voice": "alloy"}


class SessionConfig:
    """Changed by `update`; everything else reads it."""

    def __init__(
        self, session_id: str, model: str, target: Target, voice: VoiceSeams, *, transcribes: bool = False
    ) -> None:
        self.transcribes = transcribes
        self._voice = voice
        self._target = target
        self._shown: dict[str, Any] = {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": model,
            "output_modalities": _modalities(voice),
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "truncation": "auto",
            "tracing": None,
            "prompt": None,
            "include": None,
            "expires_at": None,
            "audio": {
                "input": {
                    "format": PCM,
                    "noise_reduction": None,
                    "transcription": None,
                    "turn_detection": dict(_VAD) if voice.detectors else None,
                },
                "output": {"format": PCM, **_SPOKEN},
            },
        }
        if transcribes:
            heard = self._shown["audio"]["input"]
            self._shown = {
                "type": "transcription",
                "object": "realtime.transcription_session",
                "id": session_id,
                "include": None,
                "expires_at": None,
                "audio": {"input": heard},
            }

    @property
    def session_id(self) -> str:
        """Of the stored session."""
        found: str = self._shown["id"]
        return found

    def shown(self) -> dict[str, Any]:
        """The whole session, as its client sees it."""
        return self._shown

    def update_transcription(self, sent: TranscriptionParameters) -> None:
        """As `update`, where the session only transcribes."""
        given = sent.model_dump(exclude_unset=True)
        audio = given.get("audio") or {}
        if sent.audio is not None:
            self._check_input(sent.audio.input)
            self._take_audio(audio)

    @property
    def filed_under(self) -> dict[str, str]:
        """Metadata of every run: what the client wants to find them by. `"auto"` asks for nothing that is not kept."""
        tracing = self._shown.get("tracing")
        if not isinstance(tracing, dict):
            return {}
        named = {name: tracing[name] for name in ("workflow_name", "group_id") if tracing.get(name) is not None}
        return {**(tracing.get("metadata") or {}), **named}

    def expires(self, at: float) -> None:
        """It ends then (seconds since 1970)."""
        self._shown["expires_at"] = int(at)

    @property
    def is_agent(self) -> bool:
        """True when one of our agents answers."""
        return self._target.agent is not None

    @property
    def audio(self) -> Audio:
        """How sound is coded both ways."""
        return checked(Audio, self._shown["audio"])

    @property
    def input_format(self) -> AudioFormat:
        """How sound comes in."""
        return checked(AudioFormat, self._shown["audio"]["input"]["format"])

    def update(self, sent: SessionParameters) -> None:
        """Take what was set; nothing of it when any is refused.

        Raises:
            InvalidRequest: something that this session cannot do; `param` names it.
        """
        given = sent.model_dump(exclude_unset=True)
        model = given.pop("model", None)
        if model is not None and model != self._shown["model"]:
            raise InvalidRequest(
                "The model of a session cannot be changed.", code="invalid_value", param="session.model"
            )
        self._check(sent, "session")
        audio = given.pop("audio", None) or {}
        self._take_audio(audio)
        defaults = {"instructions": "", "tools": [], "tool_choice": "auto", "max_output_tokens": "inf"}
        for name, value in given.items():
            self._shown[name] = defaults.get(name) if value is None else value
        if self._shown["output_modalities"] is None:
            self._shown["output_modalities"] = _modalities(self._voice)

    def _take_audio(self, audio: dict[str, Any]) -> None:
        detection = (audio.get("input") or {}).get("turn_detection")
        if detection is not None:
            told = {name: value for name, value in detection.items() if value is not None}
            audio["input"]["turn_detection"] = {**(_VAD if detection["type"] == "server_vad" else _SEMANTIC), **told}
        for side, shown in self._shown["audio"].items():
            shown = {**shown, **(audio.get(side) or {})}
            for name, value in (("format", PCM), *_SPOKEN.items()):
                if name in shown and shown[name] is None:
                    shown[name] = value
            self._shown["audio"][side] = shown

    def of_response(self, asked: ResponseParameters) -> dict[str, Any]:
        """What one response takes: the session's, and what it says itself.

        Raises:
            InvalidRequest: as `update`.
        """
        self._check(asked, "response")
        names = ("instructions", "tools", "tool_choice", "max_output_tokens", "output_modalities")
        given = asked.model_dump(exclude_none=True)
        taken = {name: given.get(name, self._shown[name]) for name in names}
        for name in ("parallel_tool_calls", "reasoning"):
            taken[name] = given.get(name, self._shown.get(name))
        taken["audio"] = {**self._shown["audio"]["output"], **(given.get("audio") or {}).get("output", {})}
        return taken

    def _check(self, sent: SessionParameters | ResponseParameters, where: str) -> None:
        if sent.output_modalities == ["audio"] and self._voice.speaker is None:
            raise InvalidRequest(
                "This server does not speak: set output_modalities to ['text'].",
                code="audio_not_available",
                param=f"{where}.output_modalities",
            )
        if sent.audio is not None:
            if where == "response" and sent.audio.input is not None:
                raise InvalidRequest(
                    "A response does not change what is heard.",
                    code="unsupported_parameter",
                    param="response.audio.input",
                )
            self._check_input(sent.audio.input)
        if self._target.agent is not None:
            for name in ("tools", "reasoning", "parallel_tool_calls"):
                if getattr(sent, name):
                    raise _not_for_agents(name, where)
            if sent.tool_choice not in (None, "auto", "none"):
                raise _not_for_agents("tool_choice", where)

    def _check_input(self, sent: InputAudio | None) -> None:
        """What nobody here would obey is refused by name."""
        if sent is None:
            return
        where = "session.audio.input"
        if sent.noise_reduction is not None and sent.noise_reduction.type is not None:
            raise _not_done(f"{where}.noise_reduction", "Noise is not reduced here.")
        if sent.turn_detection is not None and sent.turn_detection.idle_timeout_ms is not None:
            raise _not_done(f"{where}.turn_detection.idle_timeout_ms", "Nobody here speaks up when nothing is said.")
        wanted = sent.transcription
        for name in ("languages", "keywords", "delay"):
            if wanted is not None and getattr(wanted, name) is not None:
                raise _not_done(f"{where}.transcription.{name}", "It is not passed on to who listens.")


def _not_done(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{why} Leave '{param}' out.", code="unsupported_parameter", param=param)


def _modalities(voice: VoiceSeams) -> list[str]:
    return ["audio"] if voice.speaker is not None and voice.speaks_first else ["text"]


def parameters_of(taken: dict[str, Any]) -> dict[str, Any]:
    """The parameters of chat completions that a model is asked with."""
    more: dict[str, Any] = {}
    if taken["tools"]:
        names = ("name", "description", "parameters")
        more["tools"] = [
            {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}
            for tool in taken["tools"]
        ]
        choice = taken["tool_choice"]
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": choice["name"]}}
        if choice != "auto":
            more["tool_choice"] = choice
        if taken["parallel_tool_calls"] is not None:
            more["parallel_tool_calls"] = taken["parallel_tool_calls"]
    if effort := (taken["reasoning"] or {}).get("effort"):
        more["reasoning_effort"] = effort
    return more


def _not_for_agents(name: str, where: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{name}' is not supported by an agent, which has tools of its own; talk to a model instead.",
        code="unsupported_parameter",
        param=f"{where}.{name}",
    )
