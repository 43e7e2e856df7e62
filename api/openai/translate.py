"""The OpenAI dialect as our own commands. What an agent does not honour is refused by name."""

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from api.errors import invalid_request
from api.openai.door import Target
from api.openai.schemas import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    ImageContent,
    Instructions,
    OtherContent,
    TextContent,
    ToolMessage,
)
from domain.enums import Role
from domain.errors import InvalidRequest
from domain.models import TunedCompletion
from services.llm_providers.wire.completions import Vendor

#: What a call of an agent may say. An agent has tools of its own; those of a caller would be nobody's to run.
_AGENT = Vendor("an agent; call a model, or leave it out")
_NOT_FOR_AGENTS = ("tools", "tool_choice", "parallel_tool_calls")


def to_command(
    asked: ChatRequest,
    target: Target,
    session_id: str | None,
    metadata: dict[str, Any],
    new: Sequence[int] | None,
) -> TunedCompletion:
    """A chat completions call of an agent.

    Args:
        new: places of the messages that its session does not know yet; None: all of them are new.

    Raises:
        InvalidRequest: a parameter or a kind of content that agents do not take.
    """
    refuse_for_agents(asked.model_dump(exclude_unset=True, exclude={"messages"}))
    places = range(len(asked.messages)) if new is None else new
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    try:
        return TunedCompletion.model_validate(
            {
                "messages": [to_message(asked.messages[place], place) for place in places],
                "agent": target.agent,
                "model": target.model,
                "session_id": session_id,
                "temperature": asked.temperature,
                "max_tokens": asked.max_completion_tokens or asked.max_tokens,
                "top_p": asked.top_p,
                "stop": stop,
                "seed": asked.seed,
                "response_format": asked.response_format,
                "metadata": metadata,
            }
        )
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False, include_context=False)) from None


def refuse_for_agents(asked: dict[str, Any]) -> None:
    """Raises:
    InvalidRequest: a parameter that agents do not take; `param` names it.
    """
    for name in _NOT_FOR_AGENTS:
        if asked.get(name) not in (None, [], "none", "auto", True):
            raise InvalidRequest(
                f"'{name}' is not supported by an agent, which has tools of its own; call a model instead.",
                code="unsupported_parameter",
                param=name,
            )
    _AGENT.body("", {**asked, "messages": []}, streamed=False)


def to_message(message: ChatMessage, place: int) -> dict[str, Any]:
    """One message in our words."""
    where = f"messages.{place}.content"
    if isinstance(message, AssistantMessage):
        calls = [
            {"id": call.id, "name": call.function.name, "arguments": _arguments(call.function.arguments)}
            for call in message.tool_calls or ()
        ]
        return {"role": Role.ASSISTANT, "content": _content(message.content or "", where), "tool_calls": calls}
    if isinstance(message, ToolMessage):
        content = _content(message.content, where)
        return {"role": Role.TOOL, "content": content, "tool_call_id": message.tool_call_id}
    role = Role.SYSTEM if isinstance(message, Instructions) else Role.USER
    return {"role": role, "content": _content(message.content, where), "name": message.name}


def _content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for part in content:
        if isinstance(part, TextContent):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, ImageContent):
            detail = "auto" if part.image_url.detail == "original" else part.image_url.detail
            parts.append({"type": "image_url", "image_url": {"url": part.image_url.url, "detail": detail}})
        elif isinstance(part, OtherContent):
            raise InvalidRequest(f"Agents take no content of type '{part.type}'.", param=where)
        else:
            parts.append({"type": "text", "text": part.refusal})
    return parts


def _arguments(text: str) -> dict[str, Any]:
    try:
        read = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {"_raw": text}
    return read if isinstance(read, dict) else {"_raw": text}
