"""Settings of MCP servers, whose tools our agents may use."""

import json
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from config.fields import SettingsGroup

#: No underscore: the first one of `<server>_<tool>` ends the server's name.
ServerName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class McpServer(SettingsGroup):
    """One MCP server: `url` for one that listens (streamable HTTP), `command` for one that we start (stdio)."""

    #: Addresses and arguments may hold keys as well: not in a repr either.
    url: Annotated[str, Field(pattern=r"^https?://")] | None = Field(None, repr=False)
    headers: dict[Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")], SecretStr] = Field(
        default_factory=dict
    )
    command: Annotated[str, Field(min_length=1)] | None = None
    args: tuple[str, ...] = Field((), repr=False)
    env: dict[str, SecretStr] = Field(default_factory=dict)

    @field_validator("headers")
    @classmethod
    def _one_line(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if not all(secret.get_secret_value().isprintable() for secret in value.values()):
            raise ValueError("a header's value must be one printable line")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.url is None) == (self.command is None):
            raise ValueError("give either url or command")
        if self.url is None and self.headers:
            raise ValueError("headers go with url")
        if self.command is None and (self.args or self.env):
            raise ValueError("args and env go with command")
        return self


class McpSettings(SettingsGroup):
    """Whose tools agents may use. What runs here is said here and nowhere else: no request can add a server."""

    servers: dict[ServerName, McpServer] = Field(
        default_factory=dict,
        alias="MCP_SERVERS",
        description='JSON: {"files": {"url": "https://host/mcp", "headers": {"Authorization": "Bearer ..."}}, '
        '"local": {"command": "uvx", "args": ["some-server"], "env": {"KEY": "..."}}} (extra: mcp)',
    )
    timeout: float = Field(60, alias="MCP_TIMEOUT", gt=0, le=3_600, description="seconds for one call of a tool")
    retry_every: float = Field(
        30, alias="MCP_RETRY_EVERY", gt=0, le=3_600, description="seconds until a server that is down is tried again"
    )

    @field_validator("servers", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        if isinstance(value, str):
            return json.loads(value) if value.strip() else {}
        return value
