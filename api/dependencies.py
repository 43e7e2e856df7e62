"""Which service answers? (Who calls is `core/dependencies.py`.)"""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from services.agent_registry import AgentRegistry
from services.agent_service import AgentService
from services.api_key_service import ApiKeyService
from services.auth_service import AuthService
from services.container import Services
from services.llm_service import LLMService
from services.user_service import UserService


async def get_services(connection: HTTPConnection) -> Services:
    """Everything that `open_services` has built for this application."""
    services: Services = connection.app.state.services
    return services


AllServices = Annotated[Services, Depends(get_services)]


async def _agents(services: AllServices) -> AgentService:
    return services.agents


async def _registry(services: AllServices) -> AgentRegistry:
    return services.registry


async def _llm(services: AllServices) -> LLMService:
    return services.llm


async def _auth(services: AllServices) -> AuthService:
    return services.auth


async def _users(services: AllServices) -> UserService:
    return services.users


async def _api_keys(services: AllServices) -> ApiKeyService:
    return services.api_keys


AgentServiceDep = Annotated[AgentService, Depends(_agents)]
AgentRegistryDep = Annotated[AgentRegistry, Depends(_registry)]
LLMServiceDep = Annotated[LLMService, Depends(_llm)]
AuthServiceDep = Annotated[AuthService, Depends(_auth)]
UserServiceDep = Annotated[UserService, Depends(_users)]
ApiKeyServiceDep = Annotated[ApiKeyService, Depends(_api_keys)]
