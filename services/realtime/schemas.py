"""What clients of the Realtime protocol send, and how a session is set up. What is not honoured is refused by name."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from domain.agents import MODEL_ID_PATTERN
from domain.errors import InvalidRequest
from domain.messages import MAX_MESSAGE_CHARS
from domain.models import MetadataKey, MetadataText
from domain.text import clean_json, clean_text

_MAX_TOOLS = 128
_MAX_SCHEMA_CHARS = 200_000

Words = Annotated[str, Field(max_length=MAX_MESSAGE_CHARS), AfterValidator(clean_text)]
ShortText = Annotated[str, Field(max_length=1_024), AfterValidator(clean_text)]
ItemId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
EventId = Annotated[str, StringConstraints(max_length=512)]
CallId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)] | Literal["inf"]
Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]
JsonObject = Annotated[dict[str, Any], AfterValidator(lambda value: clean_json(value, _MAX_SCHEMA_CHARS))]
Metadata = Annotated[dict[MetadataKey, MetadataText], Field(max_length=16)]

Sent = TypeVar("Sent", bound=BaseModel)


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


# -- the session --


class AudioFormat(_Sent):
    """How sound is coded; 24 kHz is the only rate of PCM."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
    rate: Literal[24000] | None = None


class Transcription(_Sent):
    """How what is said becomes text."""

    model: ShortText | None = None
    language: ShortText | None = None
    languages: Annotated[list[ShortText], Field(max_length=32)] | None = None
    prompt: Words | None = None
    keywords: Annotated[list[ShortText], Field(max_length=256)] | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class NoiseReduction(_Sent):
    """Where the microphone is."""

    type: Literal["near_field", "far_field"] | None = None
    strength: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None


Milliseconds = Annotated[int, Field(ge=0, le=60_000)]


class TurnDetection(_Sent):
    """Who says that a turn is over: the server hears it, or (None in its place) the client commits."""

    type: Literal["server_vad", "semantic_vad"]
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    prefix_padding_ms: Milliseconds | None = None
    silence_duration_ms: Milliseconds | None = None
    idle_timeout_ms: Milliseconds | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class InputAudio(_Sent):
    """What is heard."""

    format: AudioFormat | None = None
    noise_reduction: NoiseReduction | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None


class Voice(_Sent):
    """A voice by its id."""

    id: ShortText


class OutputAudio(_Sent):
    """What is spoken."""

    format: AudioFormat | None = None
    speed: Annotated[float, Field(ge=0.25, le=1.5, allow_inf_nan=False)] | None = None
    voice: ShortText | Voice | None = None


class Audio(_Sent):
    """Both ways."""

    input: InputAudio | None = None
    output: OutputAudio | None = None


class FunctionTool(_Sent):
    """A function that the model may ask for; the client runs it."""

    type: Literal["function"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: Words | None = None
    parameters: JsonObject | None = None


class ChosenFunction(_Sent):
    """The function that must be called."""

    type: Literal["function"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class Reasoning(_Sent):
    """How much a model shall think."""

    effort: ShortText | None = None


class Trace(_Sent):
    """What the runs of a session are filed under."""

    workflow_name: ShortText | None = None
    group_id: ShortText | None = None
    metadata: Metadata | None = None


Tools = Annotated[list[FunctionTool], Field(max_length=_MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | ChosenFunction


class SessionParameters(_Sent):
    """What a client may set of a session. Fields whose only type is None are OpenAI's, and not done here."""

    type: Literal["realtime"]
    model: Annotated[str, StringConstraints(max_length=200, pattern=MODEL_ID_PATTERN)] | None = None
    output_modalities: Modalities | None = None
    instructions: Words | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Tokens | None = None
    audio: Audio | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None
    prompt: None = None
    tracing: Literal["auto"] | Trace | None = None


class HeardAudio(_Sent):
    """What is heard, and nothing said."""

    input: InputAudio | None = None


class TranscriptionParameters(_Sent):
    """What a client may set of a session that only transcribes."""

    type: Literal["transcription"]
    audio: HeardAudio | None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None


# -- what clients send --


class SessionUpdate(_Sent):
    """session.update"""

    type: Literal["session.update"]
    event_id: EventId | None = None
    session: SessionParameters


class TranscriptionUpdate(_Sent):
    """session.update of a session that only transcribes"""

    type: Literal["session.update"]
    event_id: EventId | None = None
    session: TranscriptionParameters


class ItemCreate(_Sent):
    """conversation.item.create"""

    type: Literal["conversation.item.create"]
    event_id: EventId | None = None
    item: dict[str, Any]
    previous_item_id: ItemId | None = None


class ItemNamed(_Sent):
    """conversation.item.retrieve, conversation.item.delete"""

    type: Literal["conversation.item.retrieve", "conversation.item.delete"]
    event_id: EventId | None = None
    item_id: ItemId


class ItemTruncate(_Sent):
    """conversation.item.truncate"""

    type: Literal["conversation.item.truncate"]
    event_id: EventId | None = None
    item_id: ItemId
    content_index: Annotated[int, Field(ge=0, le=1_000)]
    audio_end_ms: Annotated[int, Field(ge=0, le=86_400_000)]


class AudioAppend(_Sent):
    """input_audio_buffer.append"""

    type: Literal["input_audio_buffer.append"]
    event_id: EventId | None = None
    audio: str


class Bare(_Sent):
    """Events that say nothing but their type."""

    type: str
    event_id: EventId | None = None


class ResponseParameters(_Sent):
    """How one response differs from the session."""

    conversation: Literal["auto", "none"] | None = None
    input: Annotated[list[dict[str, Any]], Field(max_length=1_000)] | None = None
    instructions: Words | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Tokens | None = None
    output_modalities: Modalities | None = None
    metadata: Metadata | None = None
    audio: Audio | None = None
    prompt: None = None


class ResponseCreate(_Sent):
    """response.create"""

    type: Literal["response.create"]
    event_id: EventId | None = None
    response: ResponseParameters | None = None


class ResponseCancel(_Sent):
    """response.cancel"""

    type: Literal["response.cancel"]
    event_id: EventId | None = None
    response_id: ItemId | None = None


# -- items --


class InputText(_Sent):
    """Words."""

    type: Literal["input_text"]
    text: Words


class InputImage(_Sent):
    """A picture; it is handed to the model, never fetched."""

    type: Literal["input_image"]
    image_url: Annotated[str, StringConstraints(max_length=14_000_000, pattern=r"^(https://|data:image/)")]
    detail: Literal["auto", "low", "high"] | None = None


class InputSound(_Sent):
    """Something said, with what it says."""

    type: Literal["input_audio"]
    audio: str | None = None
    transcript: Words | None = None


class OutputText(_Sent):
    """What an assistant wrote."""

    type: Literal["output_text"]
    text: Words


class OutputSound(_Sent):
    """What an assistant said."""

    type: Literal["output_audio"]
    audio: str | None = None
    transcript: Words


class _Item(_Sent):
    id: ItemId | None = None
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class UserItem(_Item):
    """Somebody says something."""

    type: Literal["message"]
    role: Literal["user"]
    content: Annotated[
        list[Annotated[InputText | InputImage | InputSound, Field(discriminator="type")]],
        Field(min_length=1, max_length=256),
    ]


class SystemItem(_Item):
    """What the model is to obey."""

    type: Literal["message"]
    role: Literal["system"]
    content: Annotated[list[InputText], Field(min_length=1, max_length=256)]


class AssistantItem(_Item):
    """What the model said before."""

    type: Literal["message"]
    role: Literal["assistant"]
    content: Annotated[
        list[Annotated[OutputText | OutputSound, Field(discriminator="type")]], Field(min_length=1, max_length=256)
    ]


class CallItem(_Item):
    """A function that the model asked for."""

    type: Literal["function_call"]
    call_id: CallId | None = None
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    arguments: Words


class CallOutputItem(_Item):
    """What came of it."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Words


class ApprovalReply(_Sent):
    """A yes or a no to an `mcp_approval_request`, from somebody who saw it."""

    type: Literal["mcp_approval_response"]
    id: ItemId | None = None
    approval_request_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")]
    approve: bool
    reason: Annotated[str, StringConstraints(max_length=4_000)] | None = None


class ItemReference(_Sent):
    """An item of the conversation, in the input of a response."""

    type: Literal["item_reference"]
    id: ItemId


ItemSchema = UserItem | SystemItem | AssistantItem | CallItem | CallOutputItem
_MESSAGES: Mapping[str, type[ItemSchema]] = {"user": UserItem, "system": SystemItem, "assistant": AssistantItem}


def read_item(given: Mapping[str, Any], where: str) -> ItemSchema:
    """An item, checked.

    Raises:
        InvalidRequest: it does not fit, or is of a kind that is not done here.
    """
    kind = given.get("type")
    schema: type[ItemSchema] | None
    if kind == "message":
        role = given.get("role")
        schema = _MESSAGES.get(role) if isinstance(role, str) else None
        if schema is None:
            raise InvalidRequest(
                "The role of a message is user, assistant or system.", code="invalid_value", param=f"{where}.role"
            )
    elif kind == "function_call":
        schema = CallItem
    elif kind == "function_call_output":
        schema = CallOutputItem
    elif kind is None:
        raise InvalidRequest(f"{where}.type is missing.", code="missing_required_parameter", param=f"{where}.type")
    else:
        raise InvalidRequest(
            "An item is a message, a function_call or a function_call_output.",
            code="invalid_value",
            param=f"{where}.type",
        )
    return checked(schema, given, where)


def checked(schema: type[Sent], given: Any, where: str = "") -> Sent:
    """What was sent, checked.

    Raises:
        InvalidRequest: it does not fit; `param` is the first place that does not.
    """
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _place(first["loc"], given, where)
    match first["type"]:
        case "missing":
            code, said = "missing_required_parameter", f"Missing required parameter: '{param}'."
        case "union_tag_not_found":
            param = f"{param}.type" if param else "type"
            code, said = "missing_required_parameter", f"Missing required parameter: '{param}'."
        case "extra_forbidden":
            code, said = "unknown_parameter", f"Unknown parameter: '{param}'."
        case kind:
            code = "invalid_type" if kind.endswith("_type") else "invalid_value"
            said = f"Invalid value for '{param}': {first['msg'].removeprefix('Value error, ')}."
    raise InvalidRequest(said, code=code, param=param)


def _place(parts: tuple[int | str, ...], given: Any, where: str) -> str:
    """The path as a client knows it: without the names of union members, cut where text of theirs could be long."""
    found = [where] if where else []
    for part in parts:
        inside = isinstance(given, dict) or (isinstance(given, list) and isinstance(part, int))
        try:
            given = given[part]
        except (TypeError, KeyError, IndexError):
            if not inside or part != parts[-1]:  # the name of a union's member, not a place in what was sent
                continue
        found.append(str(part)[:100])
    return clean_text(".".join(found))[:300]
