"""The native commands and answers: the HTTP body is the command, there is no second set of classes."""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from domain.agents import AGENT_ID_PATTERN, MODEL_ID_PATTERN, SESSION_ID_PATTERN, ModelParameters, chosen_parameters
from domain.enums import FinishReason
from domain.formats import ResponseFormat
from domain.messages import MAX_MESSAGE_CHARS, Message
from domain.text import clean_text
from domain.usage import Price, Usage

MetadataKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
MetadataText = Annotated[str, Field(max_length=512), AfterValidator(clean_text)]
MetadataInt = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what every store and every JSON reader can hold
MetadataFloat = Annotated[float, Field(allow_inf_nan=False)]
MetadataValue = MetadataText | MetadataInt | MetadataFloat | bool | None


class CompletionRequest(BaseModel):
    """One question to an agent: `message`, or a whole conversation in `messages`.

    Absent `agent` and `model` are chosen as the documentation says (agent: DEFAULT_AGENT; model: the agent's own,
    DEFAULT_MODEL, the first configured provider's default).
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"message": "What is 6 times 7?", "agent": "react"}, {"message": "Hello!"}]},
    )

    message: Annotated[str, Field(min_length=1, max_length=MAX_MESSAGE_CHARS)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=2_000)] | None = None
    model: Annotated[str, Field(max_length=200, pattern=MODEL_ID_PATTERN)] | None = None
    agent: Annotated[str, Field(pattern=AGENT_ID_PATTERN)] | None = None
    session_id: Annotated[str, Field(pattern=SESSION_ID_PATTERN)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=64)] = Field(default_factory=dict)
    response_format: ResponseFormat | None = None

    @field_validator("message")
    @classmethod
    def _clean(cls, value: str | None) -> str | None:
        if value is None:
            return None
        cleaned = clean_text(value)
        if not cleaned.strip():
            raise ValueError("message is empty")
        return cleaned

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.message is None) == (self.messages is None):
            raise ValueError("give either message or messages")
        return self

    @property
    def parameters(self) -> ModelParameters:
        """What the caller set of the model's parameters; the rest is the agent's or the provider's."""
        return chosen_parameters(self.temperature, self.max_tokens, self.response_format)


class TunedCompletion(CompletionRequest):
    """The same, with what other dialects may set besides."""

    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    stop: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None

    @property
    def parameters(self) -> ModelParameters:
        """What the caller set of the model's parameters."""
        names = ("temperature", "max_tokens", "top_p", "stop", "seed", "response_format")
        given = {name: value for name in names if (value := getattr(self, name)) not in (None, ())}
        return ModelParameters.model_construct(_fields_set=set(given), **given)


class CompletionResult(BaseModel):
    """The whole answer. `model` is what served it; `usage` None means that the provider did not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    session_id: str | None
    agent: str
    model: str
    response: str
    message: Message
    usage: Usage | None
    finish_reason: FinishReason


class Abilities(BaseModel):
    """What a model can do. None: nobody told us."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    streaming: bool | None = None
    tools: bool | None = None
    vision: bool | None = None
    json_schema: bool | None = None
    reasoning: bool | None = None


class ModelInfo(BaseModel):
    """One model that can be called, or the reason why not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    provider: str
    name: str
    description: str = ""
    kind: Literal["chat", "embedding", "transcription", "speech"] = "chat"
    context_window: int | None = None
    max_output_tokens: int | None = None
    price: Price | None = None
    price_per_minute: Decimal | None = Field(None, description="US dollars per minute of sound, where that is charged")
    abilities: Abilities = Abilities()
    available: bool
    unavailable_reason: str | None = None
    default: bool = False
    offline: bool = False


class ProviderInfo(BaseModel):
    """One provider and how it stands. `source` says where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: Literal["setting", "loopback", "embedded"]
    base_url: str | None = None
    available: bool
    unavailable_reason: str | None = None
    default_model: str | None = None


class ModelList(BaseModel):
    """What can be called, by provider."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_model: str | None
    providers: list[ProviderInfo]
    models: list[ModelInfo]


class AgentInfo(BaseModel):
    """One agent, or the reason why it cannot be called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    description: str
    model: str | None = None
    tools: list[str] = Field(default_factory=list)
    available: bool
    unavailable_reason: str | None = None
    default: bool = False


class AgentList(BaseModel):
    """The agents of this house."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_agent: str
    agents: list[AgentInfo]
