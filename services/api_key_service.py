"""API keys: for programs that cannot log in. Shown once, stored as a digest, never stronger than their owner."""

from datetime import UTC, datetime, timedelta

from uuid_utils import uuid7

from core.database.engine import Database
from core.security import digest, new_secret
from domain.auth import Principal, Scope
from domain.errors import Conflict, InvalidRequest, NotFound
from domain.users import ApiKey, ApiKeyInfo, CreatedApiKey, NewApiKey
from services.auth_service import API_KEY_PREFIX

_MAX_KEYS = 200  # of one user, revoked ones included
_HINT_CHARS = 8


class ApiKeyService:
    """The keys of each user."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, user_id: str, new: NewApiKey, asked_by: Principal | None = None) -> CreatedApiKey:
        """Make a key for that user.

        Args:
            asked_by: the credential that asks; the key gets nothing that it has not. None: the operator asks.

        Raises:
            InvalidRequest: a scope, model or agent beyond those of `asked_by`.
            NotFound: there is no such user.
            Conflict: the user has too many keys.
        """
        async with self._database.reading() as work:
            owner = await work.users.get(user_id)
        if owner is None:
            raise NotFound("There is no such user.")
        held = owner.scopes if asked_by is None else asked_by.scopes
        if asked_by is not None:
            new = new.model_copy(
                update={
                    "models": _within(new.models, asked_by.allowed_models, "models"),
                    "agents": _within(new.agents, asked_by.allowed_agents, "agents"),
                }
            )
        scopes = held - {Scope.ADMIN} if new.scopes is None else new.scopes
        if not scopes <= held:
            over = sorted(scopes - held)[0]
            raise InvalidRequest(
                f"A key cannot have the scope '{over}' that you do not have.", code="invalid_scope", param="scopes"
            )
        now = datetime.now(UTC)
        secret = new_secret(API_KEY_PREFIX)
        key = ApiKey(
            id=str(uuid7()),
            user_id=user_id,
            name=new.name,
            hint=secret[:_HINT_CHARS],
            key_hash=digest(secret),
            scopes=scopes,
            models=new.models,
            agents=new.agents,
            created_at=now,
            expires_at=now + timedelta(seconds=new.expires_in) if new.expires_in else None,
        )
        async with self._database.unit_of_work() as work:
            if len(await work.api_keys.of_user(user_id)) >= _MAX_KEYS:
                raise Conflict(f"More than {_MAX_KEYS} keys; delete the user's old ones first.", code="too_many_keys")
            await work.api_keys.create(key)
        return CreatedApiKey(**_info(key).model_dump(), key=secret)

    async def list_keys(self, user_id: str) -> list[ApiKeyInfo]:
        """A user's keys, newest first."""
        async with self._database.reading() as work:
            return [_info(key) for key in await work.api_keys.of_user(user_id)]

    async def revoke(self, user_id: str, key_id: str) -> None:
        """End a key; it is refused from the next request on.

        Raises:
            NotFound: the user has no such key, or it has ended already.
        """
        async with self._database.unit_of_work() as work:
            if not await work.api_keys.revoke(key_id, user_id, datetime.now(UTC)):
                raise NotFound("There is no such key.")
            await work.auth_epoch.raise_()


def _within(asked: tuple[str, ...], allowed: frozenset[str], param: str) -> tuple[str, ...]:
    """What was asked for, inside what the asker may; the asker's own list when nothing was asked."""
    over = sorted(set(asked) - allowed) if allowed else []
    if over:
        raise InvalidRequest(f"Your own key does not allow '{over[0]}'.", code="beyond_own_key", param=param)
    return asked or tuple(sorted(allowed))


def _info(key: ApiKey) -> ApiKeyInfo:
    return ApiKeyInfo(
        id=key.id,
        name=key.name,
        hint=f"{key.hint}…",
        scopes=sorted(key.scopes),
        models=list(key.models),
        agents=list(key.agents),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked=key.revoked_at is not None,
    )
