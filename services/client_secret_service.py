"""Client secrets: what a browser is given in place of a key, to open one kind of realtime session for a while.

They are signed and not stored, so every process takes them. What made one ends it: the log-in or the key it was asked
with, the user's tokens, the user.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from core.database.engine import Database
from core.security import (
    CLIENT_SECRET_PREFIX,
    KeyRing,
    SecretClaims,
    issue_client_secret,
    read_access_token,
    read_client_secret,
)
from domain.auth import CredentialKind, Principal, UserId
from domain.errors import InvalidRequest, Unauthenticated

_REFUSAL = "The credential is not valid."


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """One, as it is given away. `expires_at` is in seconds since 1970."""

    value: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class Opened:
    """What a good one opens: a session set up as `claims.session` says, for that caller."""

    caller: Principal
    claims: SecretClaims


class ClientSecretService:
    """Issues them, and lets their holders in."""

    def __init__(self, database: Database, ring: KeyRing) -> None:
        self._database = database
        self._ring = ring

    @staticmethod
    def is_one(credential: str) -> bool:
        """True when it looks like one."""
        return credential.startswith(CLIENT_SECRET_PREFIX)

    async def issue(self, session: dict[str, Any], caller: Principal, credential: str, seconds: int) -> ClientSecret:
        """A secret for sessions set up like `session`, made with the caller's own `credential`.

        Raises:
            Unauthenticated: the caller is gone meanwhile.
            InvalidRequest: the session is too large to be carried by a secret.
        """
        by_key = caller.kind is CredentialKind.API_KEY
        family = None if by_key else read_access_token(self._ring, credential).family
        async with self._database.reading() as work:
            user = await work.users.get(caller.user_id)
        if user is None:
            raise Unauthenticated(_REFUSAL)
        try:
            value, expires_at = issue_client_secret(
                self._ring,
                user_id=user.id,
                token_version=user.token_version,
                family=family,
                key_id=caller.credential_id if by_key else None,
                scopes=tuple(sorted(caller.scopes)),
                session=session,
                ttl=seconds,
            )
        except ValueError:
            raise InvalidRequest(
                "The session is too large for a client secret (about 5 kB); set the rest with session.update.",
                code="session_too_large",
                param="session",
            ) from None
        return ClientSecret(value, expires_at)

    async def open(self, secret: str) -> Opened:
        """Who comes with that secret, and to what.

        Raises:
            Unauthenticated: not good, or not any more.
        """
        claims = read_client_secret(self._ring, secret)
        return Opened(await self.caller_of(claims), claims)

    async def caller_of(self, claims: SecretClaims) -> Principal:
        """Whom a good secret stands for, as long as what it was made with is good. Sessions may outlast a secret.

        Raises:
            Unauthenticated: it is not, any more.
        """
        now = datetime.now(UTC)
        models: frozenset[str] = frozenset()
        agents: frozenset[str] = frozenset()
        async with self._database.reading() as work:
            user = await work.users.get(claims.user_id)
            if user is None or user.disabled or user.token_version != claims.token_version:
                raise Unauthenticated(_REFUSAL)
            if claims.key_id is not None:
                keys = [key for key in await work.api_keys.of_user(user.id) if key.id == claims.key_id]
                if not keys or keys[0].revoked_at or (keys[0].expires_at is not None and keys[0].expires_at <= now):
                    raise Unauthenticated(_REFUSAL)
                models, agents = frozenset(keys[0].models), frozenset(keys[0].agents)
            elif claims.family is None or not await work.refresh_tokens.is_live(claims.family, user.id):
                raise Unauthenticated(_REFUSAL)
        return Principal(
            UserId(user.id),
            user.username,
            frozenset(scope for scope in user.scopes if scope.value in claims.scopes),
            CredentialKind.CLIENT_SECRET,
            credential_id=claims.secret_id,
            allowed_models=models,
            allowed_agents=agents,
        )
