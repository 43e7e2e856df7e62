"""The front door: `create_app(settings)` builds the ASGI application, `app` is one built from the environment."""

import gc

# Before the imports: the default of 700 new objects between collections walks the half-built house dozens of times
# (a fifth of the start), and later every second request.
gc.set_threshold(50_000, 20, 50)

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import mcp
from api.docs import install_docs
from api.errors import install_error_handlers
from api.http_protocol import GuardedHttpProtocol
from api.middleware.access_log import AccessLogMiddleware
from api.middleware.allowed_hosts import AllowedHostsMiddleware
from api.middleware.body_limit import BodyLimitMiddleware
from api.middleware.idempotency import IdempotencyMiddleware
from api.middleware.lean import LeanMiddleware
from api.middleware.request_id import RequestIdMiddleware
from api.middleware.security_headers import SecurityHeadersMiddleware
from api.middleware.unexpected import UnexpectedErrorMiddleware
from api.multipart import FORM_BYTES
from api.openai import models as openai_models
from api.openai import stored_responses
from api.openai.chat import install_chat
from api.openai.responses import install_responses
from api.openapi import install_openapi
from api.websocket_protocol import GuardedWebSocketProtocol
from api.openai import audio, embeddings, speech
from api.routes import agents, auth, background, completion, health, models, realtime, runs, schedules, sessions
from api.routes import transcription, users
from config.environment import load_settings
from config.settings import Settings
from core.logging import setup_logging
from core.metrics import Metrics
from core.security import PasswordHasher
from core.shutdown import before_the_end
from core.telemetry import apply_tracing
from services.container import Services, open_services

_DESCRIPTION = """One authenticated door for language models and LangGraph agents.

Get a token from `POST /auth/token`, then call `POST /completion` or `POST /completion/stream` with
`Authorization: Bearer <token>`; API keys (`rk_...`) work in its place.
"""
_UPLOAD_PATHS = ("/transcription", "/v1/audio/transcriptions", "/v1/audio/translations")
#: What OpenAI's SDK tells of itself, in a browser too.
_STAINLESS = (
    "arch",
    "helper-method",
    "lang",
    "os",
    "package-version",
    "retry-count",
    "runtime",
    "runtime-version",
    "timeout",
)
_HEADERS_FROM_BROWSERS = (
    "authorization",
    "content-type",
    "x-api-key",
    "x-request-id",
    "x-session-id",
    "x-conversation-id",
    "x-agent-tools",
    "last-event-id",
    "idempotency-key",
    "mcp-protocol-version",
    "mcp-session-id",
    *(f"x-stainless-{name}" for name in _STAINLESS),
)
_HEADERS_FOR_BROWSERS = (
    "x-request-id",
    "x-model",
    "x-model-replaced",
    "x-run-id",
    "x-session-id",
    "location",
    "retry-after",
    "mcp-session-id",
)


def create_app(
    settings: Settings | None = None,
    on_ready: Callable[[Services, str | None], None] | None = None,
    hasher: PasswordHasher | None = None,
) -> FastAPI:
    """The application. Its services open with the server and close with it.

    Args:
        settings: read from the environment and `.env` when None.
        hasher: other costs for password hashes than the recommended ones (tests).
        on_ready: called when everything is open, with the first admin's password if one was just made up.

    Raises:
        SettingsError: the settings cannot be used.
    """
    settings = settings or load_settings()
    apply_tracing(settings.tracing)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, metrics, hasher) as services:
            made_up = await services.users.ensure_admin()
            app.state.services = services
            app.state.authenticator = services.auth
            await services.llm.warm_up()
            sweeping = [
                asyncio.create_task(services.retention.watch(), name="retention"),
                asyncio.create_task(services.realtime.watch(), name="realtime"),
            ]
            if on_ready is not None:
                on_ready(services, made_up)
            elif made_up is not None:
                print(f"first admin: {settings.security.admin_username} / {made_up}")  # noqa: T201 - shown once, not logged
            try:
                async with at_work(services):
                    yield
            finally:
                for task in sweeping:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    app = FastAPI(
        title="routeur-ia-api",
        version=version("routeur-ia-api"),
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # Ours is /metrics; FastAPI would look at every request whether the process has an OpenTelemetry of its own.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    install_error_handlers(app)
    install_openapi(app)
    install_docs(app)
    install_chat(app)
    install_responses(app)
    native = (completion, transcription, sessions, background, runs, schedules, health, auth, models, agents, users)
    for module in (*native, openai_models, stored_responses, embeddings, speech, audio, realtime):
        app.include_router(module.router)
    app.include_router(mcp.router)
    _add_middleware(app, settings, metrics)
    return app


@asynccontextmanager
async def at_work(services: Services) -> AsyncIterator[None]:
    """Background runs go on for as long as the context lasts; at SIGTERM they are handed back at once."""
    background = services.background
    if background is None:
        yield
        return
    drains: set[asyncio.Task[None]] = set()

    def begin_to_end() -> None:
        drains.add(asyncio.create_task(background.drain(), name="drain"))

    async with background.at_work():
        with before_the_end(begin_to_end, services.settings.server.shutdown_grace):
            yield
            if drains:
                await asyncio.wait(drains)


def server_options(settings: Settings) -> dict[str, Any]:
    """How uvicorn serves the application: with its own logs off, and no forwarding header believed unasked."""
    server = settings.server
    return {
        "http": GuardedHttpProtocol,
        "ws": GuardedWebSocketProtocol,
        "ws_max_size": int(settings.realtime.max_frame_mb * 1_000_000),
        "ws_per_message_deflate": False,
        "ws_ping_interval": settings.realtime.ping_seconds,
        "ws_ping_timeout": settings.realtime.ping_seconds,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": int(server.shutdown_grace),
        "proxy_headers": bool(server.trusted_proxies),
        "forwarded_allow_ips": list(server.trusted_proxies),
    }


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """From the innermost to the outermost."""
    server = settings.server
    body, upload = int(server.max_body_mb * 1_000_000), int(server.max_upload_mb * 1_000_000) + FORM_BYTES
    app.add_middleware(LeanMiddleware, routes=app.routes)
    app.add_middleware(IdempotencyMiddleware)
    app.add_middleware(BodyLimitMiddleware, limit_for=lambda path: upload if path.startswith(_UPLOAD_PATHS) else body)
    if server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=_HEADERS_FROM_BROWSERS,
            expose_headers=_HEADERS_FOR_BROWSERS,
        )
    if server.allowed_hosts:
        app.add_middleware(AllowedHostsMiddleware, allowed=server.allowed_hosts)
    app.add_middleware(UnexpectedErrorMiddleware)
    app.add_middleware(SecurityHeadersMiddleware, https_only=settings.production)
    app.add_middleware(AccessLogMiddleware, metrics=metrics)
    app.add_middleware(RequestIdMiddleware)


def __getattr__(name: str) -> Any:
    """`app:app`, built when a server asks for it, so that importing this module reads no environment."""
    if name == "app":
        settings = load_settings()
        setup_logging(settings.log, debug=settings.server.debug)
        return create_app(settings)
    raise AttributeError(name)
