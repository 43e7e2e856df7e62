"""Users: made, changed, disabled. Every change ends the user's tokens on their next request."""

import logging
from datetime import UTC, datetime

from uuid_utils import uuid7

from config.settings import Settings
from core.database.engine import Database
from core.security import PasswordHasher, new_password
from domain.auth import Scope
from domain.errors import Conflict, NotFound
from domain.ports import RecordStore
from domain.runs import Cursor
from domain.users import NewUser, User, UserChange, UserInfo
from services.session_service import SessionMemory

_PAGE = 500

logger = logging.getLogger(__name__)


class UserService:
    """The users of this house."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        hasher: PasswordHasher,
        store: RecordStore,
        memory: SessionMemory,
    ) -> None:
        self._database = database
        self._store = store
        self._memory = memory
        self._settings = settings.security
        self._hasher = hasher

    async def ensure_admin(self) -> str | None:
        """Make the first admin when there is no user at all.

        Returns:
            The password that was made up, to be shown once; None when there was a user, or ADMIN_PASSWORD was set.
        """
        async with self._database.reading() as work:
            if await work.users.all():
                return None
        given = self._settings.admin_password
        password = given.get_secret_value() if given else new_password()
        admin = await self._new(self._settings.admin_username, password, frozenset(Scope))
        async with self._database.unit_of_work() as work:
            if await work.users.all():  # another process was first
                return None
            await work.users.create(admin)
        logger.info("first admin created", extra={"username": admin.username})
        return None if given else password

    async def create(self, new: NewUser) -> UserInfo:
        """Make a user.

        Raises:
            Conflict: the name is taken.
        """
        user = await self._new(new.username, new.password, new.scopes)
        async with self._database.unit_of_work() as work:
            if await work.users.by_name(new.username):
                raise Conflict(f"There is a user '{new.username}' already.", code="username_taken", param="username")
            await work.users.create(user)
        return _info(user)

    async def list_users(self) -> list[UserInfo]:
        """Every user, by name."""
        async with self._database.reading() as work:
            return [_info(user) for user in await work.users.all()]

    async def get(self, user_id: str) -> UserInfo:
        """One user.

        Raises:
            NotFound: there is none of that id.
        """
        async with self._database.reading() as work:
            user = await work.users.get(user_id)
        if user is None:
            raise NotFound("There is no such user.")
        return _info(user)

    async def find(self, username: str) -> UserInfo:
        """One user, by name.

        Raises:
            NotFound: there is none of that name.
        """
        async with self._database.reading() as work:
            user = await work.users.by_name(username)
        if user is None:
            raise NotFound(f"There is no user '{username}'.")
        return _info(user)

    async def change(self, user_id: str, change: UserChange) -> UserInfo:
        """Change what `change` names and end the user's tokens.

        Raises:
            NotFound: there is no such user.
            Conflict: nobody would be left who may administer.
        """
        hashed = await self._hasher.hash(change.password) if change.password is not None else None
        async with self._database.unit_of_work() as work:
            user = await work.users.get(user_id)
            if user is None:
                raise NotFound("There is no such user.")
            changed = user.model_copy(
                update={
                    "password_hash": hashed or user.password_hash,
                    "scopes": user.scopes if change.scopes is None else change.scopes,
                    "disabled": user.disabled if change.disabled is None else change.disabled,
                    "token_version": user.token_version + 1,
                    "updated_at": datetime.now(UTC),
                }
            )
            await work.users.change(changed)
            await work.refresh_tokens.revoke_user(user_id, changed.updated_at)
            _require_an_admin(await work.users.all())
            await work.auth_epoch.raise_()
        return _info(changed)

    async def delete(self, user_id: str) -> None:
        """Remove a user, all credentials of theirs, and everything that they have said.

        Raises:
            NotFound: there is no such user.
            Conflict: nobody would be left who may administer.
        """
        sessions = await self._sessions_of(user_id)
        async with self._database.unit_of_work() as work:
            if not await work.users.remove(user_id):
                raise NotFound("There is no such user.")
            _require_an_admin(await work.users.all())
            await work.auth_epoch.raise_()
        for session in sessions:
            async with self._store.unit_of_work() as records:
                await records.sessions.delete_session(session, user_id)
            await self._memory.forget(session)

    async def _sessions_of(self, user_id: str) -> list[str]:
        """Every session of a user: the foreign keys know those of this database, not what others remember of them."""
        found: list[str] = []
        after = None
        async with self._store.reading() as work:
            while page := await work.sessions.find_recent_sessions(user_id, limit=_PAGE, after=after):
                found += [session.id for session in page]
                after = Cursor(page[-1].used_at, page[-1].id)
        return found

    async def _new(self, username: str, password: str, scopes: frozenset[Scope]) -> User:
        now = datetime.now(UTC)
        return User(
            id=str(uuid7()),
            username=username,
            password_hash=await self._hasher.hash(password),
            scopes=scopes,
            created_at=now,
            updated_at=now,
        )


def _require_an_admin(users: list[User]) -> None:
    if not any(Scope.ADMIN in user.scopes and not user.disabled for user in users):
        raise Conflict("Somebody has to stay admin.", code="last_admin")


def _info(user: User) -> UserInfo:
    return UserInfo(
        id=user.id,
        username=user.username,
        scopes=sorted(user.scopes),
        disabled=user.disabled,
        created_at=user.created_at,
        updated_at=user.updated_at,
    )
