"""How an answer shall look."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator


class JsonSchemaFormat(BaseModel):
    """The answer shall be JSON of this schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "answer"
    description: Annotated[str, Field(max_length=10_000)] | None = None
    schema_: Annotated[dict[str, JsonValue], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """How the answer shall look: free text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_where_named(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given if, and only if, type is json_schema")
        return self

    def wire(self) -> dict[str, Any] | None:
        """As OpenAI's wire says it; None for plain text."""
        return None if self.type == "text" else self.model_dump(mode="json", by_alias=True, exclude_none=True)
