"""`GET /v1/models`: models and agents, as one list."""

import time

from fastapi import APIRouter

from api.dependencies import AgentRegistryDep, LLMServiceDep
from api.errors import openai_responses
from api.openai.door import target_of
from api.openai.schemas import ModelCard, ModelCards
from core.dependencies import CurrentUser
from domain.auth import Principal
from domain.errors import Forbidden
from domain.models import ModelInfo
from services.direct_service import AGENT as DIRECT

router = APIRouter(prefix="/v1/models", tags=["openai"])

_SINCE = int(time.time())  # nobody tells when a model was made; clients only sort by it


@router.get("", responses=openai_responses(401))
async def list_models(caller: CurrentUser, llm: LLMServiceDep, registry: AgentRegistryDep) -> ModelCards:
    """Everything that this caller may name as `model`: `provider/name`, and `agent/<id>`."""
    listed = (await llm.list_available_models()).models
    models = [_card(one.id, one.provider) for one in listed if one.available and _may_call(caller, one)]
    agents = [
        _card(f"agent/{one.id}", "routeur")
        for one in registry.list_agents()
        if one.available
        and one.id != DIRECT  # the models themselves are in the list
        and _may_use(caller, one.id)
    ]
    return ModelCards(data=models + agents)


@router.get("/{model_id:path}", responses=openai_responses(400, 401, 403, 404))
async def get_model(model_id: str, caller: CurrentUser, llm: LLMServiceDep, registry: AgentRegistryDep) -> ModelCard:
    """One of them."""
    target = target_of(model_id)
    if target.agent is None:
        found = await llm.get_model(model_id)
        if not _may_call(caller, found):
            raise _not_allowed("model")
        return _card(found.id, found.provider)
    if not _may_use(caller, registry.get_partner(target.agent).id):
        raise _not_allowed("agent")
    if target.model is not None and not _may(caller, (await llm.get_model(target.model)).id):
        raise _not_allowed("model")
    return _card(model_id, "routeur")


def _card(name: str, owner: str) -> ModelCard:
    return ModelCard(id=name, created=_SINCE, owned_by=owner)


def _not_allowed(kind: str) -> Forbidden:
    return Forbidden(f"This key may not use that {kind}.", code=f"{kind}_not_allowed", param="model")


def _may_call(caller: Principal, model: ModelInfo) -> bool:
    """A model that embeds is asked as no agent."""
    direct = model.kind == "embedding" or _may_use(caller, DIRECT)
    return direct and _may(caller, model.id)


def _may_use(caller: Principal, agent: str) -> bool:
    return not caller.allowed_agents or agent in caller.allowed_agents


def _may(caller: Principal, model: str) -> bool:
    return not caller.allowed_models or model in caller.allowed_models
