"""What a graph has bound to one vendor's chat model (`bind_tools`, `with_structured_output`), for another vendor's.

Tools are in OpenAI's form with all of them; how a choice is forced and how JSON is asked for is not.
"""

from collections.abc import Mapping
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema

_CHOICES = frozenset({"auto", "none", "required"})


def in_openais_words(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same, as OpenAI's wire says it."""
    told = dict(kwargs)
    wanted = told.pop("format", None)  # Ollama's
    if wanted is not None:
        told["response_format"] = _json_format(wanted)
    elif isinstance(told.get("response_format"), type):
        told["response_format"] = _schema_format(told["response_format"])
    if "tool_choice" in told:
        choice = _choice(told.pop("tool_choice"))
        if choice is not None:
            told["tool_choice"] = choice
    return told


def _choice(choice: Any) -> Any:
    """`any` is Mistral's and LangChain's word for a call of some tool; a bare name means that tool."""
    if choice is True or choice == "any":
        return "required"
    if isinstance(choice, str) and choice not in _CHOICES:
        return {"type": "function", "function": {"name": choice}}
    return choice or None


def _json_format(wanted: Any) -> dict[str, Any]:
    return {"type": "json_object"} if wanted == "json" else _schema_format(wanted)


def _schema_format(schema: Any) -> dict[str, Any]:
    made = schema if isinstance(schema, dict) else convert_to_json_schema(schema)
    name = str(made.get("title") or "answer")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": made}}
