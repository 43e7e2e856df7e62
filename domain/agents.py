"""`AgentSpec`: the schema of an agent's `config.yaml`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.enums import SessionKind
from domain.formats import ResponseFormat

AGENT_ID_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"
SESSION_ID_PATTERN = r"^[A-Za-z0-9_.:-]{1,128}$"
MODEL_ID_PATTERN = r"^[!-~]+$"  # what can stand in a header: the answer names its model there


class ModelParameters(BaseModel):
    """How a model is asked. None means: the provider's default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    stop: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    response_format: ResponseFormat | None = None

    def merged(self, over: "ModelParameters") -> "ModelParameters":
        """These parameters, with those that `over` sets on top."""
        return self.model_copy(update={name: getattr(over, name) for name in over.model_fields_set})


def chosen_parameters(
    temperature: float | None, max_tokens: int | None, response_format: ResponseFormat | None
) -> ModelParameters:
    """What a caller set of a model's parameters; the rest is the agent's or the provider's."""
    chosen: dict[str, Any] = {}
    if temperature is not None:
        chosen["temperature"] = temperature
    if max_tokens is not None:
        chosen["max_tokens"] = max_tokens
    if response_format is not None:
        chosen["response_format"] = response_format
    return ModelParameters(**chosen)


class WorkflowSpec(BaseModel):
    """Where the graph is built: a function of the agent's own `graph.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    builder: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "build_graph"


class MemorySpec(BaseModel):
    """What the agent remembers: `none` starts every call anew, `session` continues the stored conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none", "session"] = "session"
    max_messages: Annotated[int, Field(ge=1, le=10_000)] | None = None


class BackgroundSpec(BaseModel):
    """How background runs of the agent behave.

    `resume`: a run whose process died goes on from its checkpoint (the step it was in is done again); false: it is
    `lost`. `durability`: `sync` writes each step's checkpoint before the next begins, `async` meanwhile. `retries` of a
    failed run, the first after `retry_delay` seconds, then twice as long each time. `max_concurrent` runs of this agent
    at once, over all workers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resume: bool = True
    durability: Literal["async", "sync"] = "async"
    retries: Annotated[int, Field(ge=0, le=20)] = 0
    retry_delay: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 5
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None


class AgentSpec(BaseModel):
    """One agent, as its `config.yaml` tells it.

    `timeout` is in seconds for one whole run, `idle_timeout` between two signs of life of a background run;
    `recursion_limit` counts graph steps (LangGraph's own default of 10,007 would let a loop spend for an hour). `kind`
    says what its sessions and runs are counted as. `tools` are names of the tool registry. `metadata` is shown, never
    read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]
    description: Annotated[str, Field(max_length=2_000)] = ""
    kind: SessionKind = SessionKind.AGENT
    workflow: WorkflowSpec = WorkflowSpec()
    model: Annotated[str, Field(max_length=200, pattern=MODEL_ID_PATTERN)] | None = None
    parameters: ModelParameters = ModelParameters()
    tools: tuple[str, ...] = ()
    memory: MemorySpec = MemorySpec()
    timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None
    idle_timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None
    recursion_limit: Annotated[int, Field(ge=1, le=1_000)] = 25
    background: BackgroundSpec = BackgroundSpec()
    metadata: dict[str, Any] = Field(default_factory=dict)
