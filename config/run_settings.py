"""Settings of background runs."""

from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from config.fields import OptionalSecret, SettingsGroup, TextList, empty_is_none

OptionalMegabytes = Annotated[Annotated[float, Field(ge=256, le=10_000_000)] | None, BeforeValidator(empty_is_none)]


class RunSettings(SettingsGroup):
    """How background runs are queued, run, limited and told of."""

    queue: Literal["embedded", "procrastinate"] = Field(
        "embedded",
        alias="RUN_QUEUE",
        description="embedded: workers look into the database; procrastinate: jobs on PostgreSQL (extra: postgres)",
    )
    concurrency: int = Field(
        200,
        alias="RUN_CONCURRENCY",
        ge=0,
        le=10_000,
        description="background runs at once in one process; 0: it runs none",
    )
    per_user: int = Field(
        100,
        alias="RUN_MAX_PER_USER",
        ge=1,
        le=100_000,
        description="background runs of one user at once, over all workers",
    )
    queued_per_user: int = Field(
        1_000, alias="RUN_MAX_QUEUED_PER_USER", ge=1, le=1_000_000, description="in the queue; one more gets 429"
    )
    queued: int = Field(
        20_000, alias="RUN_MAX_QUEUED", ge=1, le=10_000_000, description="in the queue, of everybody; one more gets 429"
    )
    max_crashes: int = Field(
        15,
        alias="RUN_MAX_CRASHES",
        ge=0,
        le=1_000,
        description="processes that may die with a run that makes no progress, before it is taken for the cause",
    )
    loop_block_limit: float = Field(
        5,
        alias="LOOP_BLOCK_LIMIT",
        ge=0,
        le=600,
        description="seconds that an agent's code may hold up the whole process before it is stopped; 0: for ever",
    )
    max_memory_mb: OptionalMegabytes = Field(
        None,
        alias="MAX_MEMORY_MB",
        description="memory of one process; an agent that asks for more fails, and not the process; unset: no limit",
    )
    redis_url: OptionalSecret = Field(
        None,
        alias="REDIS_URL",
        description="redis://host:6379/0 carries news of runs between processes; unset: PostgreSQL does (extra: redis)",
    )
    webhook_attempts: int = Field(
        8, alias="WEBHOOK_ATTEMPTS", ge=1, le=50, description="the second after 10 s, then twice as long each time"
    )
    webhook_timeout: float = Field(10, alias="WEBHOOK_TIMEOUT", gt=0, le=120, description="seconds for one delivery")
    webhook_networks: TextList = Field(
        (),
        alias="WEBHOOK_ALLOWED_NETWORKS",
        description="private networks that webhooks may reach, comma separated (10.1.0.0/16); none by default",
    )

    @field_validator("webhook_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            ip_network(one)
        return value
