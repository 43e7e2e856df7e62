"""What can be called: agents."""

from typing import Annotated

from fastapi import APIRouter, Path

from api.dependencies import AgentRegistryDep
from api.errors import problem_responses
from core.dependencies import CurrentUser
from domain.agents import AgentSpec
from domain.models import AgentInfo, AgentList

router = APIRouter(tags=["agents"])

AgentId = Annotated[str, Path(max_length=64, examples=["simple"])]


@router.get("/agents", responses=problem_responses(401))
@router.get("/api/agents", responses=problem_responses(401))
async def list_agents(_caller: CurrentUser, registry: AgentRegistryDep) -> AgentList:
    """Every agent; those that cannot be called say why. One list at two addresses."""
    return AgentList(default_agent=registry.default_agent, agents=registry.list_agents())


@router.get("/api/agents/{agent_id}/config", responses=problem_responses(401, 404))
async def get_agent_config(agent_id: AgentId, _caller: CurrentUser, registry: AgentRegistryDep) -> AgentSpec:
    """An agent's config.yaml, with every default; values of its metadata that look like secrets are not shown."""
    return registry.shown_spec(agent_id)


@router.get("/agents/{agent_id}", responses=problem_responses(401, 404))
async def get_agent(agent_id: AgentId, _caller: CurrentUser, registry: AgentRegistryDep) -> AgentInfo:
    """One agent."""
    return registry.info(agent_id)
