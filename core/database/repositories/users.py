"""Users."""

from core.database import tables
from core.database.repositories.base import Repository
from domain.users import User


class UserRepository(Repository[User]):
    """Users, found by id or by name."""

    table = tables.users
    record = User

    async def by_name(self, username: str) -> User | None:
        """The user of that name, exactly as written."""
        return await self.find_one(self.table.c.username == username)

    async def all(self) -> list[User]:
        """Every user, by name."""
        return await self.find_many(order_by=[self.table.c.username])

    async def change(self, user: User) -> int:
        """Write everything of `user` but its id."""
        return await self.update(self.table.c.id == user.id, **self._values(user))

    async def remove(self, user_id: str) -> bool:
        """Remove the user; their keys and tokens go with them. False when there was none."""
        return await self.delete(self.table.c.id == user_id) == 1
