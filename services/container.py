"""Builds the world once, for the app, the command line and the tests. Whatever owns a resource is opened here."""

import importlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from config.settings import Settings
from core.database.engine import Database, open_database
from core.metrics import Metrics
from core.security import KeyRing, PasswordHasher
from domain.ports import RecordStore
from graphs.checkpointing import Checkpoints
from services.agent_registry import AgentRegistry
from services.agent_service import AgentService
from services.api_key_service import ApiKeyService
from services.auth_service import AuthService
from services.background import Background, open_background, open_signals
from services.client_secret_service import ClientSecretService
from services.direct_service import DirectService
from services.embedding_service import EmbeddingService
from services.idempotency_service import IdempotencyService
from services.llm_service import LLMService, open_llm_service
from services.mcp_servers import open_mcp_servers
from services.open_runs import OpenRuns
from services.realtime.voice.opening import open_voice
from services.realtime_calls import RealtimeCalls
from services.realtime_service import RealtimeService
from services.response_service import ResponseService
from services.retention_service import RetentionService
from services.run_events import RunEvents
from services.run_recorder import RunRecorder, open_recorder
from services.run_service import RunService
from services.session_service import SessionService
from services.speech_service import SpeechService
from services.tool_registry import ToolRegistry
from services.transcription_jobs import TranscriptionJobs
from services.transcription_service import TranscriptionService, open_transcription
from services.user_service import UserService


@dataclass(frozen=True, slots=True)
class Services:
    """Everything an application is made of."""

    settings: Settings
    database: Database
    metrics: Metrics
    auth: AuthService
    users: UserService
    api_keys: ApiKeyService
    llm: LLMService
    tools: ToolRegistry
    registry: AgentRegistry
    agents: AgentService
    direct: DirectService
    embeddings: EmbeddingService
    transcription: TranscriptionService
    transcription_jobs: TranscriptionJobs
    speech: SpeechService
    records: RecordStore
    recorder: RunRecorder
    sessions: SessionService
    responses: ResponseService
    runs: RunService
    idempotency: IdempotencyService
    checkpoints: Checkpoints
    retention: RetentionService
    events: RunEvents
    realtime: RealtimeService
    calls: RealtimeCalls
    #: None: the store that SESSION_STORE_URL names keeps no queue.
    background: Background | None


async def _open_records(stack: AsyncExitStack, settings: Settings, database: Database) -> RecordStore:
    url = settings.storage.session_store_url
    if url is None:
        return database.records
    # An extra: not imported before it is asked for.
    store = importlib.import_module("core.surreal.store")
    opened: RecordStore = await stack.enter_async_context(store.open_surreal_store(url))
    return opened


@asynccontextmanager
async def open_services(
    settings: Settings, metrics: Metrics | None = None, hasher: PasswordHasher | None = None
) -> AsyncIterator[Services]:
    """The services of one application, open until the context ends.

    Raises:
        SettingsError, Unavailable: something that the settings ask for cannot be had; the message names the setting.
    """
    metrics = metrics or Metrics()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        llm = await stack.enter_async_context(open_llm_service(settings, metrics))
        hasher = hasher or PasswordHasher()
        tools = ToolRegistry()
        tools.discover(settings.agents.plugins_dir)
        await stack.enter_async_context(open_mcp_servers(settings.mcp, tools))
        registry = AgentRegistry(tools, default_agent=settings.providers.default_agent)
        registry.discover(settings.agents.plugins_dir)
        checkpoints = Checkpoints(settings)
        stack.push_async_callback(checkpoints.aclose)
        records = await _open_records(stack, settings, database)
        signals = await stack.enter_async_context(open_signals(settings, database))
        events = RunEvents(records, signals)
        recorder = await stack.enter_async_context(open_recorder(records, llm.price, settings.runs.max_crashes))
        runs = OpenRuns(metrics, settings.agents.max_concurrent_runs)
        agents = AgentService(
            llm, registry, runs, settings.agents, store=records, recorder=recorder, checkpoints=checkpoints
        )
        stack.push_async_callback(agents.aclose)
        sessions = SessionService(records, recorder, checkpoints, registry)
        responses = ResponseService(records, sessions)
        stack.push_async_callback(responses.aclose)
        direct = DirectService(llm, agents, runs, records, recorder)
        transcription = await stack.enter_async_context(open_transcription(llm, runs, records, recorder, settings))
        speech = SpeechService(llm, records, metrics, settings.agents.max_concurrent_runs)
        voice = await stack.enter_async_context(
            open_voice(
                settings.realtime,
                transcription,
                speech,
                records,
                metrics,
                live=settings.transcription.offline_processes,
            )
        )
        idempotency = IdempotencyService(database)
        ring = KeyRing.from_settings(settings.security, settings.storage.data_dir)
        background = None
        if settings.storage.session_store_url is None:
            background = await stack.enter_async_context(
                open_background(
                    settings, database, records, agents, registry, recorder, events, signals, checkpoints, metrics,
                    ring.secret,
                )
            )  # fmt: skip
        jobs = TranscriptionJobs(transcription, records, background, settings)
        jobs.install(registry)
        await jobs.sweep()
        auth = AuthService(database, settings, hasher, ring)
        realtime = RealtimeService(
            settings.realtime,
            database,
            metrics,
            auth=auth,
            secrets=ClientSecretService(database, ring),
            agents=agents,
            direct=direct,
            sessions=sessions,
            registry=registry,
            recorder=recorder,
            background=None if background is None else background.runs,
            voice=voice,
        )
        calls = RealtimeCalls(realtime)
        stack.push_async_callback(calls.aclose)
        yield Services(
            settings=settings,
            database=database,
            metrics=metrics,
            auth=auth,
            users=UserService(database, settings, hasher, records, checkpoints),
            api_keys=ApiKeyService(database),
            llm=llm,
            tools=tools,
            registry=registry,
            agents=agents,
            direct=direct,
            embeddings=EmbeddingService(llm, records, metrics, settings.agents.max_concurrent_runs),
            transcription=transcription,
            transcription_jobs=jobs,
            speech=speech,
            records=records,
            recorder=recorder,
            sessions=sessions,
            responses=responses,
            runs=RunService(records, database),
            idempotency=idempotency,
            checkpoints=checkpoints,
            retention=RetentionService(
                records,
                checkpoints,
                idempotency,
                metrics,
                settings.retention,
                None if background is None else database.backlog,
            ),
            events=events,
            realtime=realtime,
            calls=calls,
            background=background,
        )
