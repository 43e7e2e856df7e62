"""Who calls, and what they may do."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

UserId = NewType("UserId", str)


class Scope(StrEnum):
    """One word per door. `admin` opens them all."""

    COMPLETION = "completion"
    TRANSCRIPTION = "transcription"
    REALTIME = "realtime"
    RUNS = "runs"
    SESSIONS = "sessions"
    METRICS = "metrics"
    ADMIN = "admin"


#: What a new user may do when nobody says otherwise: everything that touches only their own things.
DEFAULT_SCOPES = frozenset({Scope.COMPLETION, Scope.TRANSCRIPTION, Scope.REALTIME, Scope.RUNS, Scope.SESSIONS})


class CredentialKind(StrEnum):
    """What the caller showed at the door."""

    ACCESS_TOKEN = "access_token"  # noqa: S105 - a name, not a password
    API_KEY = "api_key"
    CLIENT_SECRET = "client_secret"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as the credential proved it. Empty allow-lists mean: no restriction."""

    user_id: UserId
    username: str
    scopes: frozenset[Scope]
    kind: CredentialKind
    credential_id: str
    allowed_models: frozenset[str] = field(default_factory=frozenset)
    allowed_agents: frozenset[str] = field(default_factory=frozenset)

    def may(self, scope: Scope) -> bool:
        """True when the caller holds `scope` or is an admin."""
        return scope in self.scopes or Scope.ADMIN in self.scopes
