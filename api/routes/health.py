"""Is it alive, is it ready, how is it doing."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import Response

from api.dependencies import AllServices
from api.errors import problem_responses
from api.openapi import OPEN
from core.dependencies import require
from domain.auth import Principal, Scope
from domain.errors import Unavailable

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The process can do its work."""

    status: Literal["ready"] = "ready"
    database: Literal["ok"] = "ok"
    default_model: str | None
    agents: int


@router.get("/health", openapi_extra=OPEN)
async def health() -> Health:
    """Alive: the event loop turns. Open to everybody."""
    return Health()


@router.get("/ready", openapi_extra=OPEN, responses=problem_responses(503))
async def ready(services: AllServices) -> Readiness:
    """Ready: the database answers, there is an agent to call, the server is not being stopped. Open to everybody."""
    if services.events.draining:
        raise Unavailable("The server is stopping.", code="draining", retry_after=2)
    await services.database.ping()
    usable = sum(agent.available for agent in services.registry.list_agents())
    if not usable:
        raise Unavailable("No agent can be used; see /agents.")
    return Readiness(default_model=services.llm.default_model_id, agents=usable)


@router.get("/metrics", responses=problem_responses(401, 403), response_class=Response)
async def metrics(services: AllServices, _caller: Annotated[Principal, Depends(require(Scope.METRICS))]) -> Response:
    """Prometheus metrics."""
    return Response(services.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
