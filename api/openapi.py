"""The OpenAPI document: what FastAPI derives, plus the problem body and the two ways to authenticate."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.audio_forms import OpenAITranscriptionForm, TranscriptionForm, TranslationForm
from api.errors import Problem, problem_responses
from api.openai.schemas import ChatCompletion, ChatRequest, ResponseObject, ResponseRequest
from domain.auth import Scope

#: Bodies of routes that read them themselves.
_BY_HAND: tuple[type[BaseModel], ...] = (
    Problem, ChatRequest, ChatCompletion, ResponseRequest, ResponseObject,
    TranscriptionForm, OpenAITranscriptionForm, TranslationForm,
)  # fmt: skip
_REF = "#/components/schemas/{model}"

#: For a route that is open to everybody: `openapi_extra=OPEN`. All others need one of the schemes below.
OPEN: dict[str, Any] = {"security": []}
_SCHEMES: dict[str, Any] = {
    "token": {"type": "http", "scheme": "bearer", "description": "An access token, or an API key (`rk_...`)"},
    "api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "An API key (`rk_...`)"},
    "login": {
        "type": "oauth2",
        "flows": {
            "password": {"tokenUrl": "/auth/token", "refreshUrl": "/auth/token", "scopes": {s.value: "" for s in Scope}}
        },
    },
}


_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "sent again within a day with the same body, it gets the same answer; with another body, 409",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}


def _take_key(operation: dict[str, Any], *, openai: bool) -> None:
    """Everything that creates takes a key (`api/middleware/idempotency.py`)."""
    operation.setdefault("parameters", []).append(_KEY_PARAMETER)
    if openai:
        schema = {"$ref": _REF.format(model="OpenAIError")}
        conflict = {
            "description": "In conflict with the current state",
            "content": {"application/json": {"schema": schema}},
        }
        operation["responses"].setdefault("409", conflict)
        return
    for status, response in problem_responses(409, 422).items():
        operation["responses"].setdefault(str(status), response)


def install_openapi(app: FastAPI) -> None:
    """Give `app` an `openapi()` that is built once, on first use."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for model in _BY_HAND:
                schema = model.model_json_schema(ref_template=_REF)
                schemas.update(schema.pop("$defs", {}))
                schemas[model.__name__] = schema
            for address, path in document["paths"].items():
                for method, operation in path.items():
                    if method == "post" and operation.get("security") != []:
                        _take_key(operation, openai=address.startswith("/v1/"))
                    if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                        operation["responses"]["422"] = problem_responses(422)[422]
                    if address.startswith("/v1/"):  # OpenAI's clients expect a 400 for it
                        operation["responses"].pop("422", None)
            for unused in ("HTTPValidationError", "ValidationError"):  # we never answer in FastAPI's own words
                schemas.pop(unused, None)
            document["components"]["securitySchemes"] = _SCHEMES
            document["security"] = [{name: []} for name in _SCHEMES]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
