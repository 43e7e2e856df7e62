"""Everything that may be changed from outside: grouped, frozen, and silent about secrets.

A field's environment name is its `alias`; `config/environment.py` reads them. A `Settings(...)` built by hand (tests,
embedding) reads nothing.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config.audio_settings import AudioSettings
from config.fields import (
    OptionalBool,
    OptionalDays,
    OptionalPath,
    OptionalSecret,
    OptionalText,
    SettingsGroup,
    TextList,
)
from config.mcp_settings import McpSettings
from config.realtime_settings import RealtimeSettings
from config.routing_settings import POOL, Fallbacks, ModelPool, PoolName, pool_of
from config.run_settings import RunSettings
from config.transcription_settings import TranscriptionSettings
from domain.enums import SessionKind

MIN_SECRET_BYTES = 32  # HMAC-SHA256 takes keys as long as its output; a shorter one is the weak end of every token

MIN_PASSWORD_CHARS = 8  # NIST SP 800-63B's least; back-off at the door does the rest

#: Secrets that stand in tutorials and templates; with one of them anybody is admin.
KNOWN_SECRETS = frozenset(
    {
        "secret",
        "changeme",
        "change-me",
        "your-secret-key",
        "your-secret-key-here",
        "supersecretkey",
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",  # FastAPI's documentation
    }
)


class SettingsError(Exception):
    """The settings cannot be used; the message names each environment variable and what is wrong with it."""


class ServerSettings(SettingsGroup):
    """Where we listen and whom we believe."""

    environment: Literal["development", "production"] = Field(
        "development", alias="ENVIRONMENT", description="production refuses weak settings and the offline model"
    )
    host: str = Field("127.0.0.1", alias="HOST", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, alias="PORT", ge=0, le=65_535, description="0 picks a free one")
    workers: int = Field(
        1, alias="WORKERS", ge=1, le=256, description="web processes; more than one needs shared state (PostgreSQL)"
    )
    debug: bool = Field(
        False, alias="DEBUG", description="log level DEBUG and SQL echo; never shows a trace to a caller"
    )
    allowed_hosts: TextList = Field(
        (), alias="ALLOWED_HOSTS", description="Host headers we answer to, comma separated; empty: all"
    )
    cors_origins: TextList = Field(
        (), alias="CORS_ORIGINS", description="browser origins that may call us, comma separated; none by default"
    )
    trusted_proxies: TextList = Field(
        (),
        alias="TRUSTED_PROXIES",
        description="addresses or networks whose X-Forwarded-For we believe; none by default",
    )
    max_body_mb: float = Field(
        4, alias="MAX_BODY_MB", gt=0, le=1_024, description="largest JSON body, in MB (a long conversation is under 1)"
    )
    max_upload_mb: float = Field(
        25, alias="MAX_UPLOAD_MB", gt=0, le=4_096, description="largest uploaded file, in MB (OpenAI's own limit is 25)"
    )
    heartbeat: float = Field(
        15,
        alias="SSE_HEARTBEAT",
        gt=0,
        le=300,
        description="seconds of silence after which a stream sends a comment, under the 30 s of common proxies",
    )
    shutdown_grace: float = Field(
        20, alias="SHUTDOWN_GRACE", ge=0, le=600, description="seconds that open requests get after SIGTERM"
    )


class LogSettings(SettingsGroup):
    """What we tell about ourselves."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="LOG_LEVEL")
    format: Literal["json", "text"] = Field(
        "text", alias="LOG_FORMAT", description="json for machines, text for a terminal"
    )


class StorageSettings(SettingsGroup):
    """Where things are kept."""

    data_dir: Path = Field(Path("data"), alias="DATA_DIR", description="SQLite file, generated secret, uploads")
    database_url: OptionalSecret = Field(
        None, alias="DATABASE_URL", description="postgresql://user:password@host/name; unset: SQLite in DATA_DIR"
    )

    session_store_url: OptionalText = Field(
        None,
        alias="SESSION_STORE_URL",
        description="surrealkv://folder keeps sessions and runs in embedded SurrealDB; unset: in the database",
    )

    @field_validator("session_store_url")
    @classmethod
    def _known_store(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("surrealkv://", "mem://")):
            raise ValueError("must begin with surrealkv:// or mem://")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_engine(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("sqlite://", "postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql:// or sqlite://")
        return value


class SecuritySettings(SettingsGroup):
    """How callers prove who they are."""

    secret_key: OptionalSecret = Field(
        None, alias="SECRET_KEY", description="at least 32 bytes; unset: generated once and kept in DATA_DIR, mode 0600"
    )
    jwt_algorithm: Literal["HS256", "RS256", "ES256"] = Field(
        "HS256", alias="JWT_ALGORITHM", description="HS256 needs SECRET_KEY; RS256 and ES256 need JWT_PRIVATE_KEY_FILE"
    )
    jwt_private_key_file: OptionalPath = Field(None, alias="JWT_PRIVATE_KEY_FILE", description="PEM; signs new tokens")
    jwt_public_key_files: TextList = Field(
        (),
        alias="JWT_PUBLIC_KEY_FILES",
        description="PEM files of former keys that are still believed (rotation), comma separated",
    )
    access_token_ttl: int = Field(
        900, alias="ACCESS_TOKEN_TTL", ge=30, le=86_400, description="seconds; short, because a refresh is cheap"
    )
    refresh_token_ttl: int = Field(
        1_209_600, alias="REFRESH_TOKEN_TTL", ge=60, le=31_536_000, description="seconds; 14 days"
    )
    admin_username: str = Field(
        "admin", alias="ADMIN_USERNAME", min_length=1, max_length=64, description="created when no user exists"
    )
    admin_password: OptionalSecret = Field(
        None, alias="ADMIN_PASSWORD", description="of that first admin; unset: generated and printed once"
    )
    login_backoff: float = Field(
        1.0,
        alias="LOGIN_BACKOFF",
        ge=0,
        le=60,
        description="seconds after the 5th wrong password, doubled with each further one",
    )
    login_backoff_max: float = Field(
        900, alias="LOGIN_BACKOFF_MAX", ge=0, le=86_400, description="longest wait, in seconds"
    )

    @field_validator("secret_key")
    @classmethod
    def _strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        secret = value.get_secret_value()
        if secret.lower() in KNOWN_SECRETS:
            raise ValueError("is a secret that everybody knows; make one with: openssl rand -hex 32")
        if len(secret.encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"must be at least {MIN_SECRET_BYTES} bytes; make one with: openssl rand -hex 32")
        return value

    @field_validator("admin_password")
    @classmethod
    def _no_joke(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < MIN_PASSWORD_CHARS:
            raise ValueError(f"must be at least {MIN_PASSWORD_CHARS} characters")
        return value

    @model_validator(mode="after")
    def _key_for_algorithm(self) -> Self:
        if self.jwt_algorithm != "HS256" and self.jwt_private_key_file is None:
            raise ValueError(f"JWT_ALGORITHM={self.jwt_algorithm} needs JWT_PRIVATE_KEY_FILE")
        return self


class CompatibleProvider(SettingsGroup):
    """One OpenAI-compatible server: vLLM, llama.cpp, LM Studio, LocalAI, a gateway."""

    base_url: str = Field(pattern=r"^https?://")
    api_key: SecretStr | None = None
    default_model: str | None = None
    #: It takes vLLM's `continuous_usage_stats`: what was spent is known exactly, also when a stream is cut.
    running_usage: bool = False


class ProviderSettings(SettingsGroup):
    """Who answers. A key or an address makes a provider configured."""

    openai_api_key: OptionalSecret = Field(None, alias="OPENAI_API_KEY")
    openai_base_url: OptionalText = Field(
        None, alias="OPENAI_BASE_URL", description="default https://api.openai.com/v1"
    )
    mistral_api_key: OptionalSecret = Field(None, alias="MISTRAL_API_KEY")
    mistral_base_url: OptionalText = Field(
        None, alias="MISTRAL_BASE_URL", description="default https://api.mistral.ai/v1"
    )
    ollama_base_url: OptionalText = Field(
        None,
        alias="OLLAMA_BASE_URL",
        description="for example http://127.0.0.1:11434; unset: looked for on that port in development",
    )
    compatible: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")], CompatibleProvider] = Field(
        default_factory=dict,
        alias="COMPATIBLE_PROVIDERS",
        description='JSON: {"vllm": {"base_url": "http://127.0.0.1:8001/v1", "api_key": "..."}}; also default_model, '
        "running_usage",
    )
    default_model: OptionalText = Field(
        None, alias="DEFAULT_MODEL", description="provider/name; used when neither the caller nor the agent names one"
    )
    default_agent: str = Field("simple", alias="DEFAULT_AGENT")
    model_pools: dict[PoolName, ModelPool] = Field(
        default_factory=dict,
        alias="MODEL_POOLS",
        description='JSON: {"chat": {"deployments": [{"model": "openai/gpt-4o-mini", "weight": 3}, {"model": '
        '"azure-eu/gpt-4o-mini", "timeout": 20}]}}; called as pool/chat',
    )
    model_fallbacks: dict[str, Fallbacks] = Field(
        default_factory=dict,
        alias="MODEL_FALLBACKS",
        description='JSON: {"openai/gpt-4o": ["mistral/mistral-large-latest"]}, or by kind of error {"pool/chat": '
        '{"down": [...], "rate_limited": [...], "context_length": [...]}}; what served is named in the answer',
    )
    failures_before_cooldown: int = Field(
        3,
        alias="MODEL_FAILURES_BEFORE_COOLDOWN",
        ge=1,
        le=1_000,
        description="failures in a row after which others of the pool, or fallbacks, are asked first",
    )
    cooldown: float = Field(
        30,
        alias="MODEL_COOLDOWN",
        gt=0,
        le=3_600,
        description="seconds for which such a model is set aside; a longer Retry-After counts up to 10 minutes",
    )
    discover_local: OptionalBool = Field(
        None,
        alias="DISCOVER_LOCAL",
        description="look for Ollama, LM Studio, llama.cpp and vLLM on loopback; unset: only in development",
    )
    offline_provider: OptionalBool = Field(
        None, alias="OFFLINE_PROVIDER", description="offer the embedded offline models; unset: only in development"
    )
    connect_timeout: float = Field(
        5,
        alias="PROVIDER_CONNECT_TIMEOUT",
        gt=0,
        le=120,
        description="seconds until the provider accepts the connection",
    )
    first_token_timeout: float = Field(
        60,
        alias="PROVIDER_FIRST_TOKEN_TIMEOUT",
        gt=0,
        le=3_600,
        description="seconds until the first byte of the answer (long prompts take long)",
    )
    idle_timeout: float = Field(
        30, alias="PROVIDER_IDLE_TIMEOUT", gt=0, le=3_600, description="seconds between two pieces of a stream"
    )
    total_timeout: float = Field(
        600,
        alias="PROVIDER_TOTAL_TIMEOUT",
        gt=0,
        le=86_400,
        description="seconds for one whole model call; stops a slow drip",
    )
    max_retries: int = Field(
        2, alias="PROVIDER_MAX_RETRIES", ge=0, le=10, description="tries again only before the first byte, with jitter"
    )
    max_connections: int = Field(
        1_000, alias="PROVIDER_MAX_CONNECTIONS", ge=1, le=10_000, description="open connections for each provider"
    )

    @field_validator("compatible", "model_pools", "model_fallbacks", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        if isinstance(value, str):
            return json.loads(value) if value.strip() else {}
        return value

    @field_validator("openai_base_url", "mistral_base_url", "ollama_base_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/") if value else None

    @field_validator("compatible")
    @classmethod
    def _free_names(cls, value: dict[str, CompatibleProvider]) -> dict[str, CompatibleProvider]:
        taken = {"openai", "mistral", "ollama", "offline", "whisper", "agent", POOL} & set(value)
        if taken:
            raise ValueError(f"these provider names are taken: {', '.join(sorted(taken))}")
        return value

    @model_validator(mode="after")
    def _pools_exist(self) -> Self:
        for asked, table in self.model_fallbacks.items():
            for named in sorted({asked, *table.targets()}):
                pool = pool_of(named)
                if pool is not None and pool not in self.model_pools:
                    raise ValueError(f"MODEL_FALLBACKS names '{named}', which MODEL_POOLS does not have")
        return self


class AgentSettings(SettingsGroup):
    """How agents are run."""

    max_execution_time: float = Field(
        300,
        alias="MAX_EXECUTION_TIME",
        gt=0,
        le=86_400,
        description="seconds for one run; an agent's config.yaml may ask for less",
    )
    plugins_dir: Path = Field(Path("plugins"), alias="PLUGINS_DIR", description="your own agents and tools")
    graph_cache_size: int = Field(
        256,
        alias="GRAPH_CACHE_SIZE",
        ge=1,
        le=100_000,
        description="compiled graphs kept, one per (agent, model, parameters)",
    )
    max_concurrent_runs: int = Field(
        1_000, alias="MAX_CONCURRENT_RUNS", ge=1, le=100_000, description="runs at once in one process; more get 429"
    )


class RetentionSettings(SettingsGroup):
    """For how long conversations are kept, counted from their last use; unset: until their owner deletes them."""

    agent_days: OptionalDays = Field(None, alias="RETENTION_AGENT_DAYS", description="sessions with agents")
    workflow_days: OptionalDays = Field(None, alias="RETENTION_WORKFLOW_DAYS", description="sessions of workflows")
    team_days: OptionalDays = Field(None, alias="RETENTION_TEAM_DAYS", description="sessions of teams")
    events_days: OptionalDays = Field(
        None, alias="RETENTION_EVENTS_DAYS", description="events of ended runs; their results stay"
    )
    sweep_every: float = Field(
        3_600, alias="RETENTION_SWEEP_EVERY", ge=1, le=86_400, description="seconds between two looks"
    )

    def periods(self) -> dict[SessionKind, float | None]:
        """Days by kind; None: for ever."""
        return {
            SessionKind.AGENT: self.agent_days,
            SessionKind.WORKFLOW: self.workflow_days,
            SessionKind.TEAM: self.team_days,
        }


class RateLimitSettings(SettingsGroup):
    """How often the doors may be knocked at."""

    login_per_minute: int = Field(
        30,
        alias="RATE_LIMIT_LOGIN",
        ge=1,
        le=100_000,
        description="tries of POST /auth/token in a minute from one address",
    )


class TracingSettings(SettingsGroup):
    """LangSmith: optional, and then prompts leave the machine."""

    enabled: bool = Field(False, alias="LANGCHAIN_TRACING_V2")
    api_key: OptionalSecret = Field(None, alias="LANGCHAIN_API_KEY")


class Settings(BaseSettings):
    """All groups. Build it with `load_settings()`, or by hand in a test: `Settings(storage=StorageSettings(...))`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    server: ServerSettings = ServerSettings()
    log: LogSettings = LogSettings()
    storage: StorageSettings = StorageSettings()
    security: SecuritySettings = SecuritySettings()
    providers: ProviderSettings = ProviderSettings()
    agents: AgentSettings = AgentSettings()
    runs: RunSettings = RunSettings()
    transcription: TranscriptionSettings = TranscriptionSettings()
    mcp: McpSettings = McpSettings()
    audio: AudioSettings = AudioSettings()
    realtime: RealtimeSettings = RealtimeSettings()
    retention: RetentionSettings = RetentionSettings()
    rate_limits: RateLimitSettings = RateLimitSettings()
    tracing: TracingSettings = TracingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: the environment is read by `load_settings`."""
        return (init_settings,)

    @model_validator(mode="after")
    def _workers_share(self) -> Self:
        url = self.storage.database_url
        if self.server.workers > 1 and (url is None or url.get_secret_value().startswith("sqlite")):
            raise ValueError(
                "WORKERS above 1 needs DATABASE_URL=postgresql://...: the embedded engines belong to one process"
            )
        if self.runs.queue == "procrastinate" and (url is None or url.get_secret_value().startswith("sqlite")):
            raise ValueError("RUN_QUEUE=procrastinate needs DATABASE_URL=postgresql://...")
        if self.runs.queue == "procrastinate" and self.storage.session_store_url is not None:
            raise ValueError(
                "RUN_QUEUE=procrastinate needs SESSION_STORE_URL unset: background runs are kept in PostgreSQL"
            )
        if self.retention.events_days is not None and self.storage.session_store_url is not None:
            raise ValueError(
                "RETENTION_EVENTS_DAYS needs SESSION_STORE_URL unset: there events are kept with their run"
            )
        if self.server.workers > 1 and self.storage.session_store_url is not None:
            raise ValueError(
                "WORKERS above 1 needs SESSION_STORE_URL unset: its embedded engine belongs to one process"
            )
        return self

    @property
    def production(self) -> bool:
        """True when nothing may be guessed."""
        return self.server.environment == "production"

    @property
    def discover_local(self) -> bool:
        """Look for model servers on loopback? In production only when asked for."""
        asked = self.providers.discover_local
        return not self.production if asked is None else asked

    @property
    def offline_allowed(self) -> bool:
        """Offer the embedded models? In production only when asked for."""
        asked = self.providers.offline_provider
        return not self.production if asked is None else asked
