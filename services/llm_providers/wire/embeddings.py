"""The embeddings wire that OpenAI made and everybody speaks."""

from collections.abc import Mapping
from typing import Any

from core.http import ProviderClient
from domain.embeddings import Embedded, EmbeddingRequest
from domain.errors import InvalidRequest
from domain.usage import Usage
from services.llm_providers.wire.answer import counted

EMBEDDINGS = "/embeddings"


async def post_embeddings(
    client: ProviderClient, name: str, asked: EmbeddingRequest, *, path: str = EMBEDDINGS, **more: Any
) -> Embedded:
    """What the provider answers to a request with these additional fields; those that are None are left out.

    Raises:
        RouteurError: of the upstream kinds, InvalidRequest or ModelNotFound.
    """
    payload = {"model": name, "input": asked.inputs, **{key: value for key, value in more.items() if value is not None}}
    try:
        body = await client.post_json(path, payload, model=f"{client.name}/{name}")
    except InvalidRequest as error:
        if error.code != "context_length_exceeded":
            raise
        raise InvalidRequest("An input is longer than the model's context.", code=error.code, param="input") from error
    if body.get("error"):
        raise client.error_in_stream(body["error"])
    return Embedded(body.get("data"), read_usage(body.get("usage")))


def read_usage(usage: Any) -> Usage | None:
    """What was counted. None when it is missing, or zero: every input has tokens, so nobody has counted them."""
    if not isinstance(usage, Mapping):
        return None
    tokens = counted(usage.get("prompt_tokens")) or counted(usage.get("total_tokens"))
    if not tokens:
        return None
    return Usage(input_tokens=tokens, output_tokens=0, total_tokens=counted(usage.get("total_tokens")) or tokens)


def refuse_token_ids(client: ProviderClient, asked: EmbeddingRequest) -> None:
    """For providers that read texts only.

    Raises:
        InvalidRequest: these are token ids.
    """
    if asked.has_token_ids:
        raise InvalidRequest(
            f"The provider '{client.name}' takes texts, not token ids. LangChain's OpenAIEmbeddings sends texts with "
            "check_embedding_ctx_length=False.",
            code="token_ids_not_supported",
            param="input",
        )
