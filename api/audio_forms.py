"""What callers send to have sound transcribed, how that becomes a run, and the response that a stream of it is."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from api.errors import invalid_request
from api.multipart import FILE, read_upload
from api.streaming.response import EventStreamResponse, while_connected
from core.audio.spool import Spool
from domain.agents import MODEL_ID_PATTERN, SESSION_ID_PATTERN
from domain.audio import AudioUpload, Transcript, TranscriptFormat, TranscriptionOptions
from domain.auth import Principal
from domain.errors import InternalError
from domain.models import MetadataKey, MetadataValue
from services.transcription_run import TranscriptionRun
from services.transcription_service import TranscriptionRequest, TranscriptionService

Form = TypeVar("Form", bound="AudioForm")

_WITH_TIMES = (TranscriptFormat.SRT, TranscriptFormat.VTT, TranscriptFormat.VERBOSE_JSON)
_METADATA_CHARS = 16_000


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _json_object(value: Any) -> Any:
    if value is None or value == "":
        return {}
    if len(value) > _METADATA_CHARS:
        raise ValueError(f"is longer than {_METADATA_CHARS} characters")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ValueError("is not JSON") from error


def _with_file(schema: dict[str, Any]) -> None:
    """The file is no field of ours: it goes to disk while the form is read."""
    schema["properties"][FILE] = {"type": "string", "format": "binary", "description": "wav, mp3, m4a, webm, ogg, flac"}
    schema["required"] = sorted({FILE, *schema.get("required", ())})


ModelId = Annotated[str, Field(min_length=1, max_length=200, pattern=MODEL_ID_PATTERN)]
Language = Annotated[
    Annotated[str, Field(max_length=35, pattern="^[A-Za-z]+([_-][A-Za-z0-9]+)*$")] | None,
    BeforeValidator(_empty_is_none),
]
Prompt = Annotated[Annotated[str, Field(max_length=10_000)] | None, BeforeValidator(_empty_is_none)]
Granularity = Literal["word", "segment"]


class AudioForm(BaseModel):
    """What every transcription takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_with_file)

    prompt: Prompt = None
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None

    @classmethod
    def names(cls) -> frozenset[str]:
        """The fields as they are called in a form."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())

    def options(self) -> TranscriptionOptions:
        """The command."""
        raise NotImplementedError


class _Transcribing(AudioForm):
    language: Language = None
    response_format: TranscriptFormat = TranscriptFormat.JSON
    stream: bool = False
    granularities: Annotated[list[Granularity], Field(max_length=8)] = Field(
        default_factory=list, alias="timestamp_granularities[]"
    )

    @model_validator(mode="after")
    def _fits(self) -> "_Transcribing":
        if self.granularities and self.response_format is not TranscriptFormat.VERBOSE_JSON:
            raise ValueError("timestamp_granularities[] needs response_format verbose_json")
        if self.stream and self.response_format in (TranscriptFormat.SRT, TranscriptFormat.VTT):
            raise ValueError("stream gives events, not srt or vtt: leave out one of the two")
        return self

    @property
    def words(self) -> bool:
        """Are the times of words wanted?"""
        return "word" in self.granularities

    @property
    def segments(self) -> bool:
        """Are those of segments?"""
        return not self.granularities or "segment" in self.granularities

    def _chosen(self, model: str | None, metadata: dict[str, Any]) -> TranscriptionOptions:
        return TranscriptionOptions(
            model=model,
            language=self.language,
            prompt=self.prompt,
            temperature=self.temperature,
            times=self.response_format in _WITH_TIMES,
            words=self.words,
            diarize=self.response_format is TranscriptFormat.DIARIZED_JSON,
            metadata=metadata,
        )


class TranscriptionForm(_Transcribing):
    """A file, and how it is to be transcribed. `background`: as a run that nobody waits for, told to `webhook`."""

    model: ModelId | None = Field(None, description="provider/name; unset: TRANSCRIPTION_MODEL")
    session_id: Annotated[str, Field(pattern=SESSION_ID_PATTERN)] | None = None
    metadata: Annotated[
        Annotated[dict[MetadataKey, MetadataValue], Field(max_length=64)], BeforeValidator(_json_object)
    ] = Field(default_factory=dict, description="JSON text", json_schema_extra={"type": "string"})

    background: bool = False
    webhook: Annotated[
        Annotated[str, Field(max_length=2_000, pattern=r"^https?://[!-~]+$")] | None, BeforeValidator(_empty_is_none)
    ] = None

    @model_validator(mode="after")
    def _waits_or_not(self) -> "TranscriptionForm":
        if self.background and self.stream:
            raise ValueError("a run in the background is not streamed: follow its events")
        if self.webhook is not None and not self.background:
            raise ValueError("webhook needs background=true")
        return self

    @field_validator("response_format")
    @classmethod
    def _ours(cls, value: TranscriptFormat) -> TranscriptFormat:
        if value is TranscriptFormat.DIARIZED_JSON:
            raise ValueError("diarized_json is a form of /v1/audio/transcriptions")
        return value

    def options(self) -> TranscriptionOptions:
        """The command."""
        return self._chosen(self.model, dict(self.metadata))


class OpenAITranscriptionForm(_Transcribing):
    """OpenAI's form."""

    model: ModelId
    include: list[str] = Field(default_factory=list, alias="include[]", max_length=8)
    chunking_strategy: Literal["auto"] | None = Field(None, description="auto: long files are always cut at silences")

    @field_validator("include")
    @classmethod
    def _nothing_more(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("is not supported here: log probabilities are not passed on")
        return value

    def options(self) -> TranscriptionOptions:
        """The command."""
        return self._chosen(self.model, {})


class TranslationForm(AudioForm):
    """OpenAI's form of a translation into English."""

    model: ModelId
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"

    def options(self) -> TranscriptionOptions:
        """The command."""
        return TranscriptionOptions(
            model=self.model,
            prompt=self.prompt,
            temperature=self.temperature,
            times=TranscriptFormat(self.response_format) in _WITH_TIMES,
            translate=True,
        )


@dataclass(frozen=True, slots=True)
class Begun:
    """A transcription that has begun, what was asked, and what must be closed after it."""

    run: TranscriptionRun
    stack: AsyncExitStack

    async def whole(self, request: Request) -> Transcript:
        """All of it; its files are gone then.

        Raises:
            RouteurError: as `TranscriptionRun.whole`.
            ClientLeft: the client went away.
        """
        async with self.stack:
            return await while_connected(request.receive, self.run.whole())

    async def open(self, request: Request) -> None:
        """Wait for the first words. Raises as `whole`."""
        try:
            await while_connected(request.receive, self.run.open())
        except BaseException:
            await self.stack.aclose()
            raise

    def transcript(self) -> Transcript:
        """What has been heard, at the end of a stream."""
        if self.run.transcript is None:
            raise InternalError
        return self.run.transcript


@dataclass(frozen=True, slots=True)
class Received(Generic[Form]):
    """A form that has come in, its file on disk."""

    form: Form
    upload: AudioUpload
    spool: Spool


@asynccontextmanager
async def received_form(
    request: Request, service: TranscriptionService, schema: type[Form]
) -> AsyncIterator[Received[Form]]:
    """Read the form; its file is there until the context ends.

    Raises:
        RouteurError: what is wrong with the form or the size of its file.
        ClientLeft: the client went away.
    """
    service.check_room()  # before anything is stored
    async with service.spool() as spool:
        sent = await read_upload(request, spool, schema.names())
        yield Received(_validated(schema, sent.fields), sent.upload, spool)


async def begin_transcription(
    request: Request,
    service: TranscriptionService,
    caller: Principal,
    schema: type[Form],
    *,
    session_id: str | None = None,
) -> tuple[Form, Begun]:
    """Read the form and begin.

    Raises:
        RouteurError: what is wrong with the form, its file, or what is asked.
        ClientLeft: the client went away.
    """
    async with AsyncExitStack() as stack:
        received = await stack.enter_async_context(received_form(request, service, schema))
        run = await begin_received(request, service, caller, received, session_id=session_id)
        stack.push_async_callback(run.aclose)
        return received.form, Begun(run, stack.pop_all())


async def begin_received(
    request: Request,
    service: TranscriptionService,
    caller: Principal,
    received: Received[Form],
    *,
    session_id: str | None = None,
) -> TranscriptionRun:
    """Begin with what has come in. Raises as `begin_transcription`."""
    form = received.form
    wanted = TranscriptionRequest(
        received.upload,
        received.spool.folder,
        form.options(),
        session_id or getattr(form, "session_id", None),
        streamed=bool(getattr(form, "stream", False)),
    )
    return await while_connected(request.receive, service.begin(wanted, caller))


def _validated(schema: type[Form], fields: Mapping[str, list[str]]) -> Form:
    given = {name: texts if name.endswith("[]") else texts[0] for name, texts in fields.items()}
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False, include_context=False)) from None


class TranscriptStreamResponse(EventStreamResponse):
    """A stream of a transcription. Its files go with it, however it ends, also when it never begins."""

    def __init__(
        self, frames: AsyncGenerator[bytes], begun: Begun, headers: Mapping[str, str], *, heartbeat: float
    ) -> None:
        super().__init__(frames, headers, heartbeat=heartbeat)
        self._begun = begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end or until the client leaves."""
        async with self._begun.stack:
            await super().__call__(scope, receive, send)
