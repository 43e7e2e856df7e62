"""What can be called: models, by provider."""

from fastapi import APIRouter

from api.dependencies import LLMServiceDep
from api.errors import problem_responses
from core.dependencies import CurrentUser
from domain.models import ModelInfo, ModelList

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", responses=problem_responses(401))
async def list_models(_caller: CurrentUser, llm: LLMServiceDep) -> ModelList:
    """Every provider and its models, with abilities, context, price, availability, and why not."""
    return await llm.list_available_models()


@router.get("/{model_id:path}", responses=problem_responses(401, 404))
async def get_model(model_id: str, _caller: CurrentUser, llm: LLMServiceDep) -> ModelInfo:
    """One model, by `provider/name`."""
    return await llm.get_model(model_id)
