"""What clients of /v1 send. Fields are OpenAI's; what a target does not honour is refused by name, later.

Validation is strict (no text where a number is meant): the body is handed on as it came, so it must be right as it is.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.agents import MODEL_ID_PATTERN, SESSION_ID_PATTERN
from domain.formats import ResponseFormat
from domain.messages import MAX_MESSAGE_CHARS
from domain.models import MetadataKey, MetadataText

Text = Annotated[str, Field(max_length=MAX_MESSAGE_CHARS)]
StopWord = Annotated[str, Field(min_length=1, max_length=1_000)]
ModelId = Annotated[str, Field(min_length=1, max_length=200, pattern=MODEL_ID_PATTERN)]
Metadata = Annotated[dict[MetadataKey, MetadataText], Field(max_length=64)]
SessionId = Annotated[str, Field(pattern=SESSION_ID_PATTERN)]


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class TextContent(_Sent):
    """Words."""

    type: Literal["text"]
    text: Text


class ImageAddress(_Sent):
    """Where a picture is."""

    url: Annotated[str, Field(min_length=1, max_length=14_000_000)]
    detail: Literal["auto", "low", "high", "original"] = "auto"


class ImageContent(_Sent):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageAddress


class OtherContent(_Sent):
    """Sound or a file, for models that take them."""

    type: Literal["input_audio", "file"]


Content = Annotated[TextContent | ImageContent | OtherContent, Field(discriminator="type")]
Contents = Annotated[list[Content], Field(max_length=256)]


class Instructions(_Sent):
    """What the model is to obey."""

    role: Literal["system", "developer"]
    content: Text | Annotated[list[TextContent], Field(max_length=256)]
    name: Annotated[str, Field(max_length=200)] | None = None


class UserMessage(_Sent):
    """What somebody says."""

    role: Literal["user"]
    content: Text | Contents
    name: Annotated[str, Field(max_length=200)] | None = None


class CalledFunction(_Sent):
    """A function's name and its arguments: JSON text."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    arguments: Text


class AssistantToolCall(_Sent):
    """A call that the model asked for."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    type: Literal["function"] = "function"
    function: CalledFunction


class RefusalContent(_Sent):
    """What the model would not say."""

    type: Literal["refusal"]
    refusal: Text


class AssistantMessage(_Sent):
    """What the model said."""

    role: Literal["assistant"]
    content: (
        Text
        | Annotated[list[Annotated[TextContent | RefusalContent, Field(discriminator="type")]], Field(max_length=256)]
        | None
    ) = None
    name: Annotated[str, Field(max_length=200)] | None = None
    tool_calls: Annotated[list[AssistantToolCall], Field(max_length=128)] | None = None


class ToolMessage(_Sent):
    """What a tool answered."""

    role: Literal["tool"]
    content: Text | Annotated[list[TextContent], Field(max_length=256)]
    tool_call_id: Annotated[str, Field(min_length=1, max_length=200)]


ChatMessage = Annotated[Instructions | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class StreamOptions(_Sent):
    """What a stream tells besides the answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class FunctionTool(_Sent):
    """A function that the model may ask for."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Sent):
    """A tool that the model may ask for; the caller runs it."""

    type: Literal["function"]
    function: FunctionTool


class FunctionName(_Sent):
    """Which function."""

    name: Annotated[str, Field(min_length=1, max_length=200)]


class ChosenFunction(_Sent):
    """That function is to be called."""

    type: Literal["function"]
    function: FunctionName


class OtherChoice(_Sent):
    """What else OpenAI lets its callers choose."""

    type: Literal["allowed_tools", "custom"]


ToolChoice = Annotated[ChosenFunction | OtherChoice, Field(discriminator="type")]


class ChatRequest(_Sent):
    """The body of `POST /v1/chat/completions`.

    `model` is `provider/name` for a model, `agent/<id>` for an agent, `agent/<id>@provider/name` for an agent with that
    model. Parameters that the target does not take are refused by name.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "offline/rules", "messages": [{"role": "user", "content": "Hello!"}]},
                {"model": "agent/react", "messages": [{"role": "user", "content": "What is 6 times 7?"}]},
            ]
        }
    )

    model: ModelId
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    stop: StopWord | Annotated[list[StopWord], Field(max_length=8)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    tools: Annotated[list[Tool], Field(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required", "any"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    verbosity: Annotated[str, Field(max_length=32)] | None = None
    user: Annotated[str, Field(max_length=1_000)] | None = None
    metadata: Metadata | None = None
    store: bool | None = None


class ChatMessageOut(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: ChatMessageOut
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class ChatCompletion(BaseModel):
    """The answer of `POST /v1/chat/completions`, as far as every target gives it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]


class ModelCard(BaseModel):
    """A model, or an agent, that can be called."""

    id: str = Field(examples=["agent/simple"])
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelCards(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TextFormat(_Sent):
    """How the text of a response shall look."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None
    description: Annotated[str, Field(max_length=10_000)] | None = None


class TextSettings(_Sent):
    """Everything about the text of a response."""

    model_config = ConfigDict(extra="forbid")

    format: TextFormat | None = None
    verbosity: Annotated[str, Field(max_length=32)] | None = None


class ReasoningSettings(_Sent):
    """How much a model shall think. What it thinks aloud is always told, so a summary may be asked for."""

    model_config = ConfigDict(extra="forbid")

    effort: Annotated[str, Field(max_length=32)] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ConversationRef(_Sent):
    """A stored session."""

    model_config = ConfigDict(extra="forbid")

    id: SessionId


ResponseId = Annotated[str, Field(pattern=r"^resp_[0-9a-f]{32}$")]


class ResponseRequest(_Sent):
    """The body of `POST /v1/responses`.

    `model` as in chat completions. `previous_response_id` goes on after that response, `conversation` (or the header
    `X-Session-Id`) in a stored session; `background` makes it a run that outlives the connection and the process.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "offline/rules", "input": "Hello!"},
                {"model": "agent/react", "input": "What is 6 times 7?", "background": True},
            ]
        }
    )

    model: ModelId
    input: (
        Annotated[str, Field(min_length=1, max_length=MAX_MESSAGE_CHARS)]
        | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=2_000)]
    )
    instructions: Text | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    previous_response_id: ResponseId | None = None
    conversation: SessionId | ConversationRef | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    include: Annotated[list[Literal["reasoning.encrypted_content"]], Field(max_length=8)] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: Annotated[str, Field(max_length=1_000)] | None = None
    safety_identifier: Annotated[str, Field(max_length=1_000)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1_000)] | None = None


class ResponseObject(BaseModel):
    """A response."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "failed", "in_progress", "cancelled", "queued", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    tool_choice: Any
    tools: list[dict[str, Any]]


class DeletedResponse(BaseModel):
    """It is forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(BaseModel):
    """Input items of a response."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
