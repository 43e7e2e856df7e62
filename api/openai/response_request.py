"""What is asked of `/v1/responses`: understood, checked, and made a chat completions call of."""

from dataclasses import dataclass
from typing import Any

from fastapi import Request

from api.dependencies import services_of
from api.openai.chat import tool_view_of
from api.openai.door import (
    Target,
    json_of,
    session_of,
    target_of,
    validated,
)
from api.openai.response_items import messages_of, tool_choice_of, tools_of
from api.openai.schemas import (
    ChatRequest,
    ConversationRef,
    ResponseRequest,
)
from api.openai.translate import refuse_for_agents
from api.streaming.openai_chunks import ToolView
from domain.auth import Principal
from domain.errors import InvalidRequest
from services.llm_providers.wire.completions import unsupported
from services.wire_messages import WireMessage

#: Parameters of chat completions that are called otherwise here.
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One call, understood."""

    asked: ResponseRequest
    chat: ChatRequest
    body: dict[str, Any]
    target: Target
    session_id: str | None
    metadata: dict[str, Any]
    tools: ToolView

    @property
    def streamed(self) -> bool:
        return bool(self.asked.stream)

    @property
    def forgotten(self) -> bool:
        """It is not to be kept."""
        return self.asked.store is False


async def understood(request: Request, caller: Principal) -> Wanted:
    """The call, checked as far as that goes without asking anybody.

    Raises:
        InvalidRequest: it cannot be meant, or names what is not done here.
        RouteurError: as `session_of`.
    """
    asked = validated(ResponseRequest, await json_of(request))
    for name, value in (asked.model_extra or {}).items():
        if value is not None:
            raise unsupported(name, "this router")
    target = target_of(asked.model)
    metadata: dict[str, Any] = dict(asked.metadata or {})
    body = _chat_body(asked)
    if target.agent is not None and asked.instructions:
        body["messages"] = [{"role": "system", "content": asked.instructions}, *body["messages"]]
    chat, tools = validated(ChatRequest, body), tool_view_of(request)
    if target.agent is not None or asked.background:
        refuse_for_agents(chat.model_dump(exclude_unset=True, exclude={"messages"}))
    session_id = await _session(request, asked, metadata, target, caller, body["messages"])
    return Wanted(asked, chat, body, target, session_id, metadata, tools)


def in_their_words(error: InvalidRequest) -> InvalidRequest:
    """The refusal of a parameter of chat completions, by the name that it has here."""
    name, dot, rest = (error.param or "").partition(".")
    theirs = _NAMES.get(name)
    if theirs is None:
        return error
    named = theirs if theirs == "input" else f"{theirs}{dot}{rest}"  # items and messages are counted differently
    message = error.message.replace(error.param or name, named).replace(f"'{name}'", f"'{theirs}'")
    return InvalidRequest(message, code=error.code, param=named)


def _chat_body(asked: ResponseRequest) -> dict[str, Any]:
    """The same call as a body of chat completions."""
    text = asked.text
    body = {
        "model": asked.model,
        "messages": messages_of(asked.input),
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_completion_tokens": asked.max_output_tokens,
        "tools": tools_of(asked.tools) if asked.tools else None,
        "tool_choice": tool_choice_of(asked.tool_choice) if asked.tool_choice is not None else None,
        "parallel_tool_calls": asked.parallel_tool_calls if asked.tools else None,
        "response_format": _format_of(text.format.model_dump(by_alias=True)) if text and text.format else None,
        "verbosity": text.verbosity if text else None,
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
    }
    body = {name: value for name, value in body.items() if value is not None}
    if asked.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _format_of(wanted: dict[str, Any]) -> dict[str, Any] | None:
    if wanted["type"] == "text":
        return None
    if wanted["type"] == "json_object":
        return {"type": "json_object"}
    if wanted.get("schema") is None:
        raise InvalidRequest("text.format.schema is missing.", param="text.format.schema")
    schema = {
        "name": wanted.get("name") or "answer",
        "schema": wanted["schema"],
        "strict": wanted.get("strict"),
        "description": wanted.get("description"),
    }
    return {"type": "json_schema", "json_schema": {name: one for name, one in schema.items() if one is not None}}


async def _session(
    request: Request,
    asked: ResponseRequest,
    metadata: dict[str, Any],
    target: Target,
    caller: Principal,
    messages: list[WireMessage],
) -> str | None:
    """The one session that is meant; that of `previous_response_id` is found when the call begins."""
    services = services_of(request)
    bound = await session_of(request, metadata, services, target, caller, messages)
    conversation = asked.conversation
    named = conversation.id if isinstance(conversation, ConversationRef) else conversation
    given = {one for one in (bound, named, asked.previous_response_id) if one is not None}
    if len(given) > 1:
        raise InvalidRequest(
            "Give one of previous_response_id, conversation and X-Session-Id.", param="previous_response_id"
        )
    if asked.store is False and (given or asked.background):
        raise InvalidRequest("store: false goes neither with a conversation nor with background.", param="store")
    return bound or named


def echo_of(wanted: Wanted, served: str) -> dict[str, Any]:
    """What a response repeats of its request."""
    asked = wanted.asked
    text = asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}
    reasoning = asked.reasoning.model_dump(exclude_none=True) if asked.reasoning else {}
    bound = wanted.session_id is not None and asked.previous_response_id is None
    return {
        "model": wanted.target.shown(served),
        "instructions": asked.instructions,
        "metadata": dict(asked.metadata or {}),
        "previous_response_id": asked.previous_response_id,
        "conversation": {"id": wanted.session_id} if bound else None,
        "background": bool(asked.background),
        "store": asked.store is not False,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_output_tokens": asked.max_output_tokens,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "text": {"format": {"type": "text"}, **text},
        "reasoning": {"effort": None, "summary": None, **reasoning},
        "truncation": "disabled",
        "service_tier": "default",
        "user": asked.user,
    }
