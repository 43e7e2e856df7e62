"""`POST /v1/embeddings`: texts or token ids in, vectors out."""

import asyncio
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.responses import Response

from api.dependencies import EmbeddingServiceDep
from api.errors import openai_responses
from api.streaming.response import while_connected
from core.dependencies import require
from domain.agents import MODEL_ID_PATTERN
from domain.auth import Principal, Scope
from domain.embeddings import (
    MAX_CHARS,
    MAX_DIMENSIONS,
    MAX_INPUTS,
    MAX_TOKENS,
    EmbeddingRequest,
    Embeddings,
    Texts,
    TokenIds,
    Vector,
)
from domain.text import clean_text

router = APIRouter(prefix="/v1", tags=["openai"])

Caller = Annotated[Principal, Depends(require(Scope.COMPLETION))]

_MOST_TOKEN_ID = 2**32 - 1
_SLICE = 50_000  # numbers, or characters, written between two turns of the loop
_WANTED = "must be a text, a list of texts, a list of token ids, or a list of lists of token ids"
_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_CHARS}
_IDS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": _MOST_TOKEN_ID},
    "minItems": 1,
    "maxItems": MAX_TOKENS,
}
_MANY = {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS}
_INPUT_SCHEMA = {
    "anyOf": [_TEXT, {**_MANY, "items": _TEXT}, _IDS, {**_MANY, "items": _IDS}],
    "description": f"At most {MAX_INPUTS} inputs, {MAX_TOKENS} token ids and {MAX_CHARS} characters in all, none empty",
}


def _inputs(value: Any) -> Texts | TokenIds:
    """One list of inputs, all of one kind, of a size that can be meant.

    By hand: Pydantic's union would try four shapes on thousands of values, and complain of each.
    """
    given: Any = [value] if isinstance(value, str) else value
    if not isinstance(given, list):
        raise ValueError(_WANTED)
    if not given:
        raise ValueError("is empty")
    kinds = set(map(type, given))
    if kinds == {int}:
        given, kinds = [given], {list}
    if len(given) > MAX_INPUTS:
        raise ValueError(f"has more than {MAX_INPUTS} inputs")
    if kinds == {str}:
        return _texts(given)
    if kinds == {list}:
        return _token_ids(given)
    raise ValueError(_WANTED)


def _texts(given: list[str]) -> Texts:
    if sum(map(len, given)) > MAX_CHARS:
        raise ValueError(f"has more than {MAX_CHARS} characters in all")
    texts = [clean_text(text) for text in given]
    if not all(texts):
        raise ValueError("holds an empty text")
    return texts


def _token_ids(given: list[list[Any]]) -> TokenIds:
    if not all(given):
        raise ValueError("holds an empty list of token ids")
    if sum(map(len, given)) > MAX_TOKENS:
        raise ValueError(f"has more than {MAX_TOKENS} token ids in all")
    for ids in given:
        if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) > _MOST_TOKEN_ID:
            raise ValueError(_WANTED)
    return given


class EmbeddingBody(BaseModel):
    """What shall be embedded. `encoding_format` base64 is little-endian float32, as OpenAI's clients decode it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"model": "offline/hash", "input": ["Hello", "Bonjour"]}]},
    )

    model: Annotated[str, Field(min_length=1, max_length=200, pattern=MODEL_ID_PATTERN)]
    input: Annotated[Any, BeforeValidator(_inputs), WithJsonSchema(_INPUT_SCHEMA)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(strict=True, ge=1, le=MAX_DIMENSIONS)] | None = None
    user: Annotated[str, Field(max_length=512, description="accepted, and not passed on")] | None = None

    def request(self) -> EmbeddingRequest:
        """The command."""
        return EmbeddingRequest(self.model, self.input, self.dimensions, self.encoding_format == "base64")


class EmbeddingEntry(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """`estimated`: the provider did not count, and these are a guess by length; the record says unmeasured."""

    prompt_tokens: int
    total_tokens: int
    estimated: bool | None = None


class EmbeddingList(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingEntry]
    usage: EmbeddingUsage


@router.post(
    "/embeddings",
    response_model=EmbeddingList,
    responses=openai_responses(400, 401, 403, 404, 409, 413, 429, 502, 503, 504),
)
async def embed(body: EmbeddingBody, request: Request, caller: Caller, embeddings: EmbeddingServiceDep) -> Response:
    """A vector for each input. The header `x-model` names the model that made them."""
    asked = body.request()
    made = await while_connected(request.receive, embeddings.embed(asked, caller))
    return Response(await _written(made, asked), headers={"x-model": made.model}, media_type="application/json")


async def _written(made: Embeddings, asked: EmbeddingRequest) -> bytes:
    """The answer as JSON, written a few vectors at a time: a large one would hold everybody up."""
    turns = max(1, _SLICE // len(made.vectors[0]))
    entries = []
    for index, vector in enumerate(made.vectors):
        entries.append(_entry(index, vector))
        if (index + 1) % turns == 0:
            await asyncio.sleep(0)
    head = orjson.dumps({"object": "list", "model": made.model, "usage": _usage(made, asked)})
    return b"".join((head[:-1], b',"data":[', b",".join(entries), b"]}"))


def _entry(index: int, vector: Vector) -> bytes:
    return orjson.dumps({"object": "embedding", "index": index, "embedding": vector})


def _usage(made: Embeddings, asked: EmbeddingRequest) -> dict[str, Any]:
    """OpenAI's clients need numbers: where the provider gave none, a guess that says so."""
    if made.usage is None:
        tokens = asked.estimated_tokens()
        return {"prompt_tokens": tokens, "total_tokens": tokens, "estimated": True}
    return {"prompt_tokens": made.usage.input_tokens, "total_tokens": made.usage.total_tokens}
