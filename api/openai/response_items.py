"""Input and output items of the Responses API, and chat messages: both ways."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from api.streaming.openai_responses import call_item, message_item, reasoning_item
from domain.errors import InvalidRequest
from domain.sessions import RawMessage
from services.llm_providers.wire.completions import unsupported

Message = dict[str, Any]
_INPUT_ROLES = {"human": "user", "system": "system", "tool": "tool", "ai": "assistant"}  # by what LangChain calls them
_FUNCTION = ("type", "name", "description", "parameters", "strict")
_ROLES = ("user", "assistant", "system", "developer")


def messages_of(given: str | Sequence[Mapping[str, Any]]) -> list[Message]:
    """The input of a response as chat messages.

    Raises:
        InvalidRequest: an item or a part of a kind that we do not take.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Message] = []
    for place, item in enumerate(given):
        _add_item(messages, item, f"input.{place}")
    if not messages:
        raise InvalidRequest("The input holds no message.", param="input")
    return messages


def _add_item(messages: list[Message], item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message" and item.get("role") in _ROLES:
        messages.append({"role": item["role"], "content": _content(item.get("content"), where)})
    elif kind == "function_call":
        call = {
            "id": _text(item, "call_id", where),
            "type": "function",
            "function": {"name": _text(item, "name", where), "arguments": _text(item, "arguments", where)},
        }
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = item.get("output")
        content = output if isinstance(output, str) else _content(output, where)
        messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": content})
    elif kind != "reasoning":  # thoughts are never sent back to a model
        raise InvalidRequest(
            f"Items of type '{str(item.get('type', item.get('role')))[:50]}' are not supported.",
            code="unsupported_input",
            param=where,
        )


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name} must be a text.", param=f"{where}.{name}")
    return value


def _content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InvalidRequest(f"{where}.content must be a text or a list of parts.", param=f"{where}.content")
    parts = [_part(part, f"{where}.content.{place}") for place, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": _text(part, "text", where)}
        case "refusal":
            return {"type": "text", "text": _text(part, "refusal", where)}
        case "input_image" if part.get("image_url"):
            image = {"url": _text(part, "image_url", where), "detail": part.get("detail") or "auto"}
            return {"type": "image_url", "image_url": image}
        case "input_audio" if isinstance(part.get("input_audio"), dict):
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        case "input_file" if part.get("file_data"):
            named = {name: part[name] for name in ("file_data", "filename") if part.get(name)}
            return {"type": "file", "file": named}
        case kind:
            raise InvalidRequest(
                f"Content of type '{str(kind)[:50]}' is not supported in that form.",
                code="unsupported_input",
                param=where,
            )


def tools_of(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Function tools in the form of chat completions.

    Raises:
        InvalidRequest: a tool that runs on OpenAI's side, or something about a function that we do not honour.
    """
    found = []
    for place, tool in enumerate(tools):
        if tool.get("type") != "function":
            kind = str(tool.get("type"))[:50]
            raise unsupported(f"tools.{place}.type", f"this router ('{kind}' runs at OpenAI)")
        for name, value in tool.items():
            if name not in _FUNCTION and value not in (None, False):
                raise unsupported(f"tools.{place}.{name}", "this router")
        function = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
        if tool.get("strict") is not None:
            function["strict"] = tool["strict"]
        found.append({"type": "function", "function": function})
    return found


def tool_choice_of(choice: Any) -> Any:
    """`tool_choice` in the form of chat completions.

    Raises:
        InvalidRequest: a choice that only OpenAI's own tools know.
    """
    if isinstance(choice, str):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    raise unsupported("tool_choice", "this router in that form")


# -- what is stored --


def output_items(messages: Iterable[RawMessage], *, calls: bool) -> list[dict[str, Any]]:
    """What a run has said, as output items.

    Args:
        calls: the calls were for the caller (a model's), not the agent's own.
    """
    items: list[dict[str, Any]] = []
    for raw in messages:
        data = raw.message_data.get("data") if raw.format == "langchain" else None
        if not isinstance(data, dict) or raw.message_data.get("type") != "ai":
            continue
        message_id = str(data.get("id") or f"msg_{raw.message_index}")
        thought = (data.get("additional_kwargs") or {}).get("reasoning_content")
        if thought:
            items.append(reasoning_item(f"rs_{message_id}", str(thought)))
        partial = bool((data.get("response_metadata") or {}).get("partial"))
        if text := _text_of(data.get("content")):
            items.append(message_item(message_id, text, "incomplete" if partial else "completed"))
        if calls:
            items += _calls_of(data)
    return items


def _calls_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        call_item(str(call.get("id")), str(call.get("name")), _arguments(call.get("args")))
        for call in [*(data.get("tool_calls") or ()), *(data.get("invalid_tool_calls") or ())]
    ]


def input_items(messages: Iterable[RawMessage]) -> list[dict[str, Any]]:
    """What a run was asked, as input items."""
    items: list[dict[str, Any]] = []
    for raw in messages:
        data = raw.message_data.get("data") if raw.format == "langchain" else None
        kind = raw.message_data.get("type")
        if not isinstance(data, dict) or kind not in _INPUT_ROLES:
            continue
        content, item_id = data.get("content"), str(data.get("id") or f"msg_{raw.message_index}")
        if kind == "tool":
            call_id = str(data.get("tool_call_id"))
            output = {"call_id": call_id, "output": _text_of(content), "status": "completed"}
            items.append({"id": item_id, "type": "function_call_output", **output})
        elif kind != "ai":
            said = {"role": _INPUT_ROLES[kind], "status": "completed", "content": _input_parts(content)}
            items.append({"id": item_id, "type": "message", **said})
        else:
            if text := _text_of(content):
                items.append(message_item(item_id, text))
            items += [{**call, "id": f"{call['id']}_{raw.message_index}"} for call in _calls_of(data)]
    return items


def _input_parts(content: Any) -> list[dict[str, Any]]:
    """What was said, as parts of an input item."""
    parts = []
    for part in content if isinstance(content, list) else [{"type": "text", "text": content or ""}]:
        match part:
            case {"type": "image_url", "image_url": {"url": url, **more}}:
                parts.append({"type": "input_image", "image_url": url, "detail": more.get("detail") or "auto"})
            case {"type": "input_audio", "input_audio": audio}:
                parts.append({"type": "input_audio", "input_audio": audio})
            case {"type": "file", "file": dict(file)}:
                parts.append({"type": "input_file", **file})
            case _:
                parts.append({"type": "input_text", "text": _text_of([part])})
    return parts


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _arguments(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value or {}).decode()
