"""Users, their keys and their tokens: what is stored, what is asked, what is answered."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from domain.agents import AGENT_ID_PATTERN
from domain.auth import DEFAULT_SCOPES, CredentialKind, Scope

Username = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}$")]
Password = Annotated[str, Field(min_length=8, max_length=1_024)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class User(_Record):
    """A user as stored. `token_version` grows when every token of the user shall end."""

    id: str
    username: str
    password_hash: str = Field(repr=False)
    scopes: frozenset[Scope]
    disabled: bool = False
    token_version: int = 0
    created_at: datetime
    updated_at: datetime


class ApiKey(_Record):
    """An API key as stored: the key itself is not. Empty allow-lists mean no restriction."""

    id: str
    user_id: str
    name: str
    hint: str
    key_hash: str = Field(repr=False)
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class RefreshToken(_Record):
    """One link of a family. Used twice, the whole family is revoked."""

    id: str
    user_id: str
    family: str
    token_hash: str = Field(repr=False)
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    revoked_at: datetime | None = None


class TokenRequest(_Record):
    """The form of POST /auth/token (OAuth 2.0, RFC 6749 sections 4.3 and 6)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    grant_type: Literal["password", "refresh_token"]
    username: Annotated[str, Field(max_length=256)] | None = None
    password: Annotated[str, Field(max_length=8_192, json_schema_extra={"format": "password"})] | None = Field(
        None, repr=False
    )
    refresh_token: Annotated[str, Field(max_length=8_192)] | None = Field(None, repr=False)
    scope: Annotated[str, Field(max_length=1_024)] | None = Field(None, description="narrows; separated by spaces")
    client_id: Annotated[str, Field(max_length=0)] | None = Field(None, description="empty: there are no OAuth clients")
    client_secret: Annotated[str, Field(max_length=0)] | None = Field(None, description="empty")

    @model_validator(mode="after")
    def _fits_its_grant(self) -> Self:
        if self.grant_type == "password" and not (self.username and self.password and not self.refresh_token):
            raise ValueError("grant_type password needs username and password, and no refresh_token")
        if self.grant_type == "refresh_token" and (not self.refresh_token or self.username or self.password):
            raise ValueError("grant_type refresh_token needs refresh_token, and no username or password")
        return self


class RevokeRequest(_Record):
    """The form of POST /auth/revoke (RFC 7009). The hint is not needed: the tokens tell themselves apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    token: Annotated[str, Field(min_length=1, max_length=8_192)] = Field(repr=False)
    token_type_hint: Literal["access_token", "refresh_token"] | None = None


class TokenPair(_Record):
    """The answer of POST /auth/token, as OAuth 2.0 names things. `expires_in` is in seconds."""

    access_token: str
    refresh_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - a word of the protocol
    expires_in: int
    scope: str


class Me(_Record):
    """The caller."""

    user_id: str
    username: str
    scopes: list[Scope]
    credential: CredentialKind
    models: list[str]
    agents: list[str]


class UserInfo(_Record):
    """A user as shown to an admin."""

    id: str
    username: str
    scopes: list[Scope]
    disabled: bool
    created_at: datetime
    updated_at: datetime


class UserList(_Record):
    """Every user, by name."""

    users: list[UserInfo]


class NewUser(_Record):
    """A user to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    username: Username
    password: Password = Field(repr=False)
    scopes: frozenset[Scope] = DEFAULT_SCOPES


class UserChange(_Record):
    """What shall be different; what is absent stays. Each change ends the user's tokens at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    password: Password | None = Field(None, repr=False)
    scopes: frozenset[Scope] | None = None
    disabled: bool | None = None


class NewApiKey(_Record):
    """A key to be made. `expires_in` is in seconds; absent scopes mean all that its owner has, admin excepted."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: frozenset[Scope] | None = None
    expires_in: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    models: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=100)] = ()
    agents: Annotated[tuple[Annotated[str, Field(pattern=AGENT_ID_PATTERN)], ...], Field(max_length=100)] = ()


class ApiKeyInfo(_Record):
    """A key as shown: `hint` is its beginning."""

    id: str
    name: str
    hint: str
    scopes: list[Scope]
    models: list[str]
    agents: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked: bool


class CreatedApiKey(ApiKeyInfo):
    """A new key; `key` is shown this once."""

    key: str


class ApiKeyList(_Record):
    """The caller's keys, newest first."""

    keys: list[ApiKeyInfo]
