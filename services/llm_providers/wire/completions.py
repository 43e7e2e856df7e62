"""A caller's own chat completions body, made fit for one vendor: no LangChain between.

What a vendor does not take is refused by name, unless its value asks for what happens anyway. Nothing is dropped in
silence that would change an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from domain.errors import InvalidRequest

#: What every vendor takes.
COMMON = frozenset(
    {
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
    }
)
#: What is meant for us, or only for bookkeeping: never sent on, except to OpenAI where it knows the word.
OURS = frozenset({"model", "stream", "stream_options", "metadata", "store", "user", "safety_identifier"})
_BOOKKEEPING = frozenset({"prompt_cache_key", "prompt_cache_retention"})
#: Asked like that, nothing else happens than without.
_IDLE: Mapping[str, Any] = {
    "n": 1,
    "logprobs": False,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "modalities": ["text"],
    "service_tier": "auto",
}


@dataclass(frozen=True, slots=True)
class Vendor:
    """What one vendor's chat completions take.

    Attributes:
        name: for messages.
        more: parameters beside `COMMON`.
        rename: ours to theirs.
        any_other: what OpenAI does not define is handed on (sampling parameters of vLLM, llama.cpp, ...).
        developer: knows the role `developer`; else it is sent as `system`.
        usage_in_streams: has to be asked for with `stream_options`; None: tells without being asked.
        no_choice: knows no `tool_choice`.
    """

    name: str
    more: frozenset[str] = frozenset()
    rename: Mapping[str, str] = field(default_factory=dict)
    any_other: bool = False
    developer: bool = False
    usage_in_streams: bool = True
    no_choice: bool = False

    def body(
        self, model: str, asked: Mapping[str, Any], *, streamed: bool, running_usage: bool = False
    ) -> dict[str, Any]:
        """What to send.

        Raises:
            InvalidRequest: something that this vendor does not take; `param` names it.
        """
        body: dict[str, Any] = {"model": model}
        for name, value in asked.items():
            if name in OURS or value is None:
                continue
            if name in COMMON or name in self.more:
                body[self.rename.get(name, name)] = value
            elif name not in _BOOKKEEPING and not _idle(name, value):
                if not self.any_other or name in OPENAI_ONLY:
                    raise unsupported(name, self.name)
                body[name] = value
        if not self.developer:
            body["messages"] = [_as_system(message) for message in body["messages"]]
        if self.no_choice:
            self._settle_choice(body)
        if streamed:
            body["stream"] = True
            if self.usage_in_streams:
                body["stream_options"] = {"include_usage": True}
                if running_usage:
                    body["stream_options"]["continuous_usage_stats"] = True
        return body

    def _settle_choice(self, body: dict[str, Any]) -> None:
        choice = body.pop("tool_choice", "auto")
        if choice == "none":
            body.pop("tools", None)
        elif choice != "auto":
            raise unsupported("tool_choice", self.name)


#: Everything else that OpenAI defines.
OPENAI_ONLY = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "modalities",
        "n",
        "prediction",
        "presence_penalty",
        "reasoning_effort",
        "service_tier",
        "top_logprobs",
        "verbosity",
        "web_search_options",
    }
)
_SHORT = {"max_completion_tokens": "max_tokens"}
OPENAI = Vendor("OpenAI", OPENAI_ONLY | _BOOKKEEPING, developer=True)
COMPATIBLE = Vendor(
    "this server",
    OPENAI_ONLY - {"audio", "functions", "function_call", "modalities", "prediction", "web_search_options"},
    _SHORT,
    any_other=True,
)
MISTRAL = Vendor(
    "Mistral",
    frozenset({"n", "frequency_penalty", "presence_penalty", "prediction"}),
    {**_SHORT, "seed": "random_seed"},
    usage_in_streams=False,
)
OLLAMA = Vendor(
    "Ollama",
    frozenset({"frequency_penalty", "presence_penalty", "reasoning_effort", "logprobs", "top_logprobs"}),
    _SHORT,
    no_choice=True,
)
OFFLINE = Vendor("the offline demonstration model", rename=_SHORT)


def unsupported(name: str, who: str) -> InvalidRequest:
    """The refusal of a parameter."""
    return InvalidRequest(f"'{name[:100]}' is not supported by {who}.", code="unsupported_parameter", param=name[:100])


def _idle(name: str, value: Any) -> bool:
    return name in _IDLE and value == _IDLE[name]


def _as_system(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "system"} if message.get("role") == "developer" else message
