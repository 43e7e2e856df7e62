"""Which service answers? (Who calls is `core/dependencies.py`.)"""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from domain.errors import Unavailable
from services.agent_registry import AgentRegistry
from services.agent_service import AgentService
from services.api_key_service import ApiKeyService
from services.auth_service import AuthService
from services.background import Background
from services.container import Services as Services  # the only door to it
from services.direct_service import DirectService
from services.embedding_service import EmbeddingService
from services.llm_service import LLMService
from services.run_events import RunEvents
from services.run_service import RunService
from services.session_service import SessionService
from services.speech_service import SpeechService
from services.transcription_jobs import TranscriptionJobs
from services.transcription_service import TranscriptionService
from services.user_service import UserService


def services_of(connection: HTTPConnection) -> Services:
    """Everything that `open_services` has built for this application."""
    services: Services = connection.app.state.services
    return services


async def get_services(connection: HTTPConnection) -> Services:
    """The same, as a dependency."""
    return services_of(connection)


AllServices = Annotated[Services, Depends(get_services)]


# Each reads the state itself: one dependency less to solve for each request.


async def _agents(connection: HTTPConnection) -> AgentService:
    return (await get_services(connection)).agents


async def _direct(connection: HTTPConnection) -> DirectService:
    return (await get_services(connection)).direct


async def _embeddings(connection: HTTPConnection) -> EmbeddingService:
    return (await get_services(connection)).embeddings


async def _transcription(connection: HTTPConnection) -> TranscriptionService:
    return (await get_services(connection)).transcription


async def _speech(connection: HTTPConnection) -> SpeechService:
    return (await get_services(connection)).speech


async def _transcription_jobs(connection: HTTPConnection) -> TranscriptionJobs:
    return (await get_services(connection)).transcription_jobs


async def _registry(connection: HTTPConnection) -> AgentRegistry:
    return (await get_services(connection)).registry


async def _llm(connection: HTTPConnection) -> LLMService:
    return (await get_services(connection)).llm


async def _auth(connection: HTTPConnection) -> AuthService:
    return (await get_services(connection)).auth


async def _users(connection: HTTPConnection) -> UserService:
    return (await get_services(connection)).users


async def _api_keys(connection: HTTPConnection) -> ApiKeyService:
    return (await get_services(connection)).api_keys


async def _sessions(connection: HTTPConnection) -> SessionService:
    return (await get_services(connection)).sessions


async def _runs(connection: HTTPConnection) -> RunService:
    return (await get_services(connection)).runs


async def _events(connection: HTTPConnection) -> RunEvents:
    return (await get_services(connection)).events


async def _background(connection: HTTPConnection) -> Background:
    """Background runs.

    Raises:
        Unavailable: the chosen store keeps none.
    """
    background = (await get_services(connection)).background
    if background is None:
        raise Unavailable("Background runs need SESSION_STORE_URL to be unset.", code="background_unavailable")
    return background


async def _made_id(connection: HTTPConnection) -> str | None:
    """The id that an Idempotency-Key gives to what its request makes."""
    made_id: str | None = connection.scope.get("state", {}).get("made_id")
    return made_id


AgentServiceDep = Annotated[AgentService, Depends(_agents)]
DirectServiceDep = Annotated[DirectService, Depends(_direct)]
EmbeddingServiceDep = Annotated[EmbeddingService, Depends(_embeddings)]
TranscriptionServiceDep = Annotated[TranscriptionService, Depends(_transcription)]
SpeechServiceDep = Annotated[SpeechService, Depends(_speech)]
TranscriptionJobsDep = Annotated[TranscriptionJobs, Depends(_transcription_jobs)]
AgentRegistryDep = Annotated[AgentRegistry, Depends(_registry)]
LLMServiceDep = Annotated[LLMService, Depends(_llm)]
AuthServiceDep = Annotated[AuthService, Depends(_auth)]
UserServiceDep = Annotated[UserService, Depends(_users)]
ApiKeyServiceDep = Annotated[ApiKeyService, Depends(_api_keys)]
SessionServiceDep = Annotated[SessionService, Depends(_sessions)]
RunServiceDep = Annotated[RunService, Depends(_runs)]
RunEventsDep = Annotated[RunEvents, Depends(_events)]
BackgroundDep = Annotated[Background, Depends(_background)]
MadeId = Annotated[str | None, Depends(_made_id)]
