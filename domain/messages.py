"""Messages as a caller writes them and as we give them back: neutral, whatever library speaks inside."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from domain.enums import Role
from domain.text import clean_text

MAX_MESSAGE_CHARS = 1_000_000  # about 250 k tokens: more than any window we know, far less than the body limit


class TextPart(BaseModel):
    """A piece of text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text"] = "text"
    text: Annotated[str, Field(max_length=MAX_MESSAGE_CHARS)]

    @field_validator("text")
    @classmethod
    def _clean(cls, value: str) -> str:
        return clean_text(value)


class ImageUrl(BaseModel):
    """Where a picture is: an https address or a `data:` URL. It is handed to the provider, never fetched by us."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, Field(max_length=14_000_000, pattern=r"^(https://|data:image/)")]
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(BaseModel):
    """A picture, for models that see."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ToolCall(BaseModel):
    """A tool that a model asked for. `arguments` is what it meant; text that is no JSON object is under `_raw`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=200)]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    arguments: dict[str, Any] = Field(default_factory=dict)


class Message(BaseModel):
    """One message of a conversation. A tool's answer names the call it answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: (
        Annotated[str, Field(max_length=MAX_MESSAGE_CHARS)] | Annotated[list[ContentPart], Field(max_length=256)]
    ) = ""
    name: Annotated[str, Field(max_length=200)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] = Field(default_factory=list)
    tool_call_id: Annotated[str, Field(max_length=200)] | None = None

    @field_validator("content")
    @classmethod
    def _clean(cls, value: str | list[ContentPart]) -> str | list[ContentPart]:
        return clean_text(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_its_role(self) -> "Message":
        if self.role is Role.TOOL and not self.tool_call_id:
            raise ValueError("a tool message needs tool_call_id")
        if self.tool_calls and self.role is not Role.ASSISTANT:
            raise ValueError("only an assistant message may hold tool_calls")
        if self.role is not Role.ASSISTANT and not self.content:
            raise ValueError(f"a {self.role.value} message needs content")
        return self

    @property
    def text(self) -> str:
        """The words alone, parts joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))
