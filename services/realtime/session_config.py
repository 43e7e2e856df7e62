"""How a session stands: what its client has set, what it is shown, and what each response takes of it."""

from typing import Any

from domain.errors import InvalidRequest
from domain.targets import Target
from services.realtime.schemas import Audio, AudioFormat, ResponseParameters, SessionParameters, checked
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


class SessionConfig:
    """Changed by `update`; everything else reads it."""

    def __init__(self, session_id: str, model: str, target: Target, voice: VoiceSeams) -> None:
        self._voice = voice
        self._target = target
        self._shown: dict[str, Any] = {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": model,
            "output_modalities": ["audio"] if voice.speaker else ["text"],
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
                "output": {"format": PCM, "speed": 1.0, "voice": "alloy"},
            },
        }

    def shown(self) -> dict[str, Any]:
        """The whole session, as its client sees it."""
        return self._shown

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
        detection = (audio.get("input") or {}).get("turn_detection")
        if detection is not None:
            defaults = _VAD if detection["type"] == "server_vad" else {"create_response": True, "eagerness": "auto"}
            audio["input"]["turn_detection"] = {**defaults, **detection}
        for side in ("input", "output"):
            self._shown["audio"][side] = {**self._shown["audio"][side], **(audio.get(side) or {})}
            if self._shown["audio"][side]["format"] is None:
                self._shown["audio"][side]["format"] = PCM
        defaults = {"instructions": "", "tools": [], "tool_choice": "auto", "max_output_tokens": "inf"}
        for name, value in given.items():
            self._shown[name] = defaults.get(name) if value is None else value
        if self._shown["output_modalities"] is None:
            self._shown["output_modalities"] = ["audio"] if self._voice.speaker else ["text"]

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
        return taken

    def _check(self, sent: SessionParameters | ResponseParameters, where: str) -> None:
        if sent.output_modalities == ["audio"] and self._voice.speaker is None:
            raise InvalidRequest(
                "This server does not speak: set output_modalities to ['text'].",
                code="audio_not_available",
                param=f"{where}.output_modalities",
            )
        if self._target.agent is not None:
            for name in ("tools", "reasoning", "parallel_tool_calls"):
                if getattr(sent, name):
                    raise _not_for_agents(name, where)
            if sent.tool_choice not in (None, "auto", "none"):
                raise _not_for_agents("tool_choice", where)


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
