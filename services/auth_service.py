"""Who calls? Log-in, rotating refresh tokens, revocation, and the check at every request."""

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from uuid_utils import uuid7

from config.settings import Settings
from core.database.engine import Database
from core.database.unit_of_work import UnitOfWork
from core.security import KeyRing, PasswordHasher, digest, issue_access_token, new_secret, read_access_token
from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.errors import InvalidRequest, Unauthenticated
from domain.users import RefreshToken, TokenPair, User
from services.login_throttle import LoginThrottle

logger = logging.getLogger(__name__)

API_KEY_PREFIX = "rk_"
REFRESH_PREFIX = "rt_"
_CACHE_SIZE = 10_000  # credentials; about 1 kB each
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal
    expires_at: float
    epoch: int


class AuthService:
    """The one authenticator, for every carrier: headers, sockets, the command line."""

    def __init__(self, database: Database, settings: Settings, hasher: PasswordHasher, ring: KeyRing) -> None:
        self._database = database
        self._access_ttl = settings.security.access_token_ttl
        self._refresh_ttl = timedelta(seconds=settings.security.refresh_token_ttl)
        self._hasher = hasher
        self._ring = ring
        self._throttle = LoginThrottle(database, settings)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    @property
    def ring(self) -> KeyRing:
        """The keys that sign and verify."""
        return self._ring

    async def login(self, username: str, password: str, scopes: Iterable[str] | None, address: str) -> TokenPair:
        """Tokens for a name and a password. The same work, words and time whether or not the name exists.

        Raises:
            Unauthenticated: wrong.
            RateLimited: too many wrong ones before; `retry_after` is set.
            InvalidRequest: a scope that the user does not have.
        """
        await self._throttle.check(username, address)
        async with self._database.reading() as work:
            user = await work.users.by_name(username)
        usable = user if user is not None and not user.disabled else None
        good = await self._hasher.verify(password, usable.password_hash if usable else None)
        if not good or usable is None:
            await self._throttle.failed(username, address)
            raise Unauthenticated("Wrong username or password.", code="invalid_grant")
        await self._throttle.succeeded(username, address)
        granted = _narrowed(usable.scopes, scopes)
        rehashed = await self._hasher.hash(password) if self._hasher.is_outdated(usable.password_hash) else None
        now = datetime.now(UTC)
        async with self._database.unit_of_work() as work:
            if rehashed:
                await work.users.change(usable.model_copy(update={"password_hash": rehashed}))
            await work.refresh_tokens.sweep(usable.id, now)
            family = str(uuid7())
            secret = await self._new_refresh_token(work, usable, family, granted, now)
        return self._pair(usable, family, secret, granted)

    async def refresh(self, token: str, scopes: Iterable[str] | None = None) -> TokenPair:
        """New tokens for a refresh token, which is spent by this. Spending one twice ends its whole family.

        Raises:
            Unauthenticated: unknown, spent, expired or revoked.
            InvalidRequest: a scope beyond those the family was given.
        """
        now = datetime.now(UTC)
        async with self._database.unit_of_work() as work:
            old = await work.refresh_tokens.by_hash(digest(token))
            user = await work.users.get(old.user_id) if old else None
            if old is None or user is None or user.disabled or old.revoked_at or old.expires_at <= now:
                raise Unauthenticated("The refresh token is not valid.", code="invalid_grant")
            granted = _narrowed(old.scopes & user.scopes, scopes)
            reused = not await work.refresh_tokens.use(old.id, now)
            if reused:
                await self._end_family(work, old.family, now)
            else:
                secret = await self._new_refresh_token(work, user, old.family, old.scopes & user.scopes, now)
        if reused:
            logger.warning("refresh token used twice: its family is revoked", extra={"user_id": user.id})
            raise Unauthenticated("The refresh token is not valid.", code="invalid_grant")
        return self._pair(user, old.family, secret, granted)

    async def revoke(self, token: str) -> None:
        """End the family of a refresh or an access token. An unknown token is no error (RFC 7009): it is not valid.

        Raises:
            InvalidRequest: it is an API key; those are revoked under /auth/keys.
        """
        _refuse_api_key(token)
        family: str | None = None
        with suppress(Unauthenticated):
            family = read_access_token(self._ring, token).family
        async with self._database.unit_of_work() as work:
            if family is None and (found := await work.refresh_tokens.by_hash(digest(token))) is not None:
                family = found.family
            if family is not None:
                await self._end_family(work, family, datetime.now(UTC))

    async def logout(self, credential: str) -> None:
        """End the log-in that an access token belongs to: the token itself and every refresh token of its family.

        Raises:
            InvalidRequest: the credential is an API key; those are revoked under /auth/keys.
        """
        _refuse_api_key(credential)
        claims = read_access_token(self._ring, credential)
        async with self._database.unit_of_work() as work:
            await self._end_family(work, claims.family, datetime.now(UTC))

    async def authenticate(self, credential: str) -> Principal:
        """The caller behind an access token or an API key.

        Known credentials cost a digest and one row; they are looked up again when anything was revoked anywhere.

        Raises:
            Unauthenticated: not good, or not any more.
        """
        return (await self.admit(credential))[0]

    async def admit(self, credential: str) -> tuple[Principal, float]:
        """The same, and when the credential ends (seconds since 1970, or infinity).

        Raises:
            Unauthenticated: not good, or not any more.
        """
        epoch = await self._database.auth_epoch()
        name = sha256(credential.encode("utf-8", "surrogatepass")).digest()  # of the whole credential, never a part
        known = self._known.get(name)
        if known is not None and known.epoch == epoch and known.expires_at > time.time():
            return known.principal, known.expires_at
        self._known.pop(name, None)
        if credential.startswith(API_KEY_PREFIX):
            known = await self._look_up_key(credential, epoch)
        else:
            known = await self._look_up_token(credential, epoch)
        self._known[name] = known
        if len(self._known) > _CACHE_SIZE:
            self._known.popitem(last=False)
        return known.principal, known.expires_at

    async def _look_up_token(self, token: str, epoch: int) -> _Known:
        claims = read_access_token(self._ring, token)
        async with self._database.reading() as work:
            user = await work.users.get(claims.user_id)
            live = await work.refresh_tokens.is_live(claims.family, claims.user_id)
        if user is None or user.disabled or user.token_version != claims.token_version or not live:
            raise Unauthenticated("The credential is not valid.")
        scopes = frozenset(scope for scope in user.scopes if scope.value in claims.scopes)
        principal = Principal(
            UserId(user.id), user.username, scopes, CredentialKind.ACCESS_TOKEN, credential_id=claims.token_id
        )
        return _Known(principal, claims.expires_at, epoch)

    async def _look_up_key(self, key: str, epoch: int) -> _Known:
        now = datetime.now(UTC)
        async with self._database.reading() as work:
            found = await work.api_keys.by_hash(digest(key))
            user = await work.users.get(found.user_id) if found else None
        if (
            found is None
            or user is None
            or user.disabled
            or found.revoked_at is not None
            or (found.expires_at is not None and found.expires_at <= now)
        ):
            raise Unauthenticated("The credential is not valid.")
        principal = Principal(
            UserId(user.id),
            user.username,
            found.scopes & user.scopes,
            CredentialKind.API_KEY,
            credential_id=found.id,
            allowed_models=frozenset(found.models),
            allowed_agents=frozenset(found.agents),
        )
        return _Known(principal, found.expires_at.timestamp() if found.expires_at else _NEVER, epoch)

    async def _new_refresh_token(
        self, work: UnitOfWork, user: User, family: str, scopes: frozenset[Scope], now: datetime
    ) -> str:
        secret = new_secret(REFRESH_PREFIX)
        await work.refresh_tokens.create(
            RefreshToken(
                id=str(uuid7()),
                user_id=user.id,
                family=family,
                token_hash=digest(secret),
                scopes=scopes,
                created_at=now,
                expires_at=now + self._refresh_ttl,
            )
        )
        return secret

    @staticmethod
    async def _end_family(work: UnitOfWork, family: str, now: datetime) -> None:
        await work.refresh_tokens.revoke_family(family, now)
        await work.auth_epoch.raise_()

    def _pair(self, user: User, family: str, refresh_token: str, scopes: frozenset[Scope]) -> TokenPair:
        ordered = tuple(sorted(scopes))
        access = issue_access_token(
            self._ring,
            user_id=user.id,
            username=user.username,
            scopes=ordered,
            family=family,
            token_version=user.token_version,
            ttl=self._access_ttl,
        )
        return TokenPair(
            access_token=access, refresh_token=refresh_token, expires_in=self._access_ttl, scope=" ".join(ordered)
        )


def _refuse_api_key(credential: str) -> None:
    if credential.startswith(API_KEY_PREFIX):
        raise InvalidRequest("An API key is no log-in; revoke it under /auth/keys.", code="unsupported_token_type")


def _narrowed(held: frozenset[Scope], asked: Iterable[str] | None) -> frozenset[Scope]:
    """The scopes asked for, when all of them are held; all that are held when none is asked for."""
    wanted = list(asked or ())
    if not wanted:
        return held
    over = [scope for scope in wanted if scope not in {one.value for one in held}]
    if over:
        may = " ".join(sorted(held))
        raise InvalidRequest(
            f"The scope '{over[0][:50]}' is not yours; you have: {may}.", code="invalid_scope", param="scope"
        )
    return frozenset(Scope(scope) for scope in wanted)
