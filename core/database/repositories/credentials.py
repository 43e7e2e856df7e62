"""API keys, refresh tokens, wrong passwords, and the epoch that tells caches to look again."""

from datetime import datetime

from sqlalchemy import case, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database import tables
from core.database.repositories.base import Repository
from domain.users import ApiKey, RefreshToken


class ApiKeyRepository(Repository[ApiKey]):
    """API keys."""

    table = tables.api_keys
    record = ApiKey

    async def by_hash(self, key_hash: str) -> ApiKey | None:
        """The key with that digest."""
        return await self.find_one(self.table.c.key_hash == key_hash)

    async def of_user(self, user_id: str) -> list[ApiKey]:
        """A user's keys, newest first."""
        return await self.find_many(self.table.c.user_id == user_id, order_by=[self.table.c.created_at.desc()])

    async def revoke(self, key_id: str, user_id: str, now: datetime) -> bool:
        """End one key of one user; False when they have no such key."""
        mine = (self.table.c.id == key_id, self.table.c.user_id == user_id, self.table.c.revoked_at.is_(None))
        return await self.update(*mine, revoked_at=now) == 1


class RefreshTokenRepository(Repository[RefreshToken]):
    """Refresh tokens, in families."""

    table = tables.refresh_tokens
    record = RefreshToken

    async def by_hash(self, token_hash: str) -> RefreshToken | None:
        """The token with that digest."""
        return await self.find_one(self.table.c.token_hash == token_hash)

    async def use(self, token_id: str, now: datetime) -> bool:
        """Mark it used; True for exactly one of any number of callers."""
        fresh = (self.table.c.id == token_id, self.table.c.used_at.is_(None), self.table.c.revoked_at.is_(None))
        return await self.update(*fresh, used_at=now) == 1

    async def revoke_family(self, family: str, now: datetime) -> int:
        """End every token of the family."""
        return await self.update(self.table.c.family == family, self.table.c.revoked_at.is_(None), revoked_at=now)

    async def revoke_user(self, user_id: str, now: datetime) -> int:
        """End every token of the user."""
        return await self.update(self.table.c.user_id == user_id, self.table.c.revoked_at.is_(None), revoked_at=now)

    async def is_live(self, family: str, user_id: str) -> bool:
        """True while the family has not been revoked."""
        living = (self.table.c.family == family, self.table.c.user_id == user_id, self.table.c.revoked_at.is_(None))
        return await self.find_one(*living) is not None

    async def sweep(self, user_id: str, now: datetime) -> int:
        """Forget a user's expired tokens."""
        return await self.delete(self.table.c.user_id == user_id, self.table.c.expires_at < now)


class LoginFailureRepository:
    """How often a password was wrong, and until when to wait."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def blocked_until(self, keys: list[str]) -> datetime | None:
        """The latest moment until which one of `keys` has to wait."""
        table = tables.login_failures
        query = (
            select(table.c.blocked_until).where(table.c.key.in_(keys)).order_by(table.c.blocked_until.desc()).limit(1)
        )
        return (await self._connection.execute(query)).scalar()

    async def count(self, key: str, now: datetime, forget_before: datetime) -> int:
        """One more failure of `key`; how many it has now. Those before `forget_before` do not count."""
        table = tables.login_failures
        dialect = postgresql_insert if self._connection.dialect.name == "postgresql" else sqlite_insert
        more = case((table.c.updated_at < forget_before, 1), else_=table.c.failures + 1)
        query = (
            dialect(table)
            .values(key=key, failures=1, blocked_until=now, updated_at=now)
            .on_conflict_do_update(index_elements=[table.c.key], set_={"failures": more, "updated_at": now})
            .returning(table.c.failures)
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def block(self, key: str, until: datetime) -> None:
        """Let `key` wait."""
        table = tables.login_failures
        await self._connection.execute(update(table).where(table.c.key == key).values(blocked_until=until))

    async def forget(self, keys: list[str], quiet_since: datetime) -> None:
        """Forget `keys`, and whatever has been quiet since that moment."""
        table = tables.login_failures
        await self._connection.execute(table.delete().where(table.c.key.in_(keys) | (table.c.updated_at < quiet_since)))


class AuthEpochRepository:
    """The epoch: read by caches, raised by whatever ends a credential."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self) -> int:
        """The current epoch."""
        return int((await self._connection.execute(select(tables.auth_epoch.c.epoch))).scalar_one())

    async def raise_(self) -> None:
        """From the end of this unit of work on, every cached credential is looked up again."""
        table = tables.auth_epoch
        await self._connection.execute(update(table).values(epoch=table.c.epoch + 1))
