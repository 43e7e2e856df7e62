"""What belongs to background runs and is not asked for on every request: approvals, deliveries, schedules."""

from datetime import datetime

from sqlalchemy import func, select, update

from core.database import tables
from core.database.repositories.base import Repository
from domain.background import Approval, Delivery
from domain.schedules import Schedule


class ApprovalRepository(Repository[Approval]):
    """What runs have asked of humans."""

    table = tables.approvals
    record = Approval

    async def of_run(self, run_id: str) -> list[Approval]:
        """In the order they were asked."""
        return await self.find_many(self.table.c.run_id == run_id, order_by=[self.table.c.created_at, self.table.c.id])


class DeliveryRepository(Repository[Delivery]):
    """Webhook deliveries, one for each run that wants it."""

    table = tables.webhook_deliveries
    record = Delivery

    async def any_due(self, now: datetime) -> bool:
        """True when there is something to be sent."""
        due = select(self.table.c.run_id).where(self.table.c.status == "pending", self.table.c.next_at <= now).limit(1)
        return (await self._connection.execute(due)).first() is not None

    async def claim(self, now: datetime, until: datetime, limit: int) -> list[Delivery]:
        """Those that are due; nobody else gets them before `until`."""
        due = (
            select(self.table.c.run_id)
            .where(self.table.c.status == "pending", self.table.c.next_at <= now)
            .order_by(self.table.c.next_at)
            .limit(limit)
        )
        if self._connection.dialect.name == "postgresql":
            due = due.with_for_update(skip_locked=True)
        changed = (
            update(self.table)
            .where(self.table.c.run_id.in_(due), self.table.c.status == "pending")
            .values(next_at=until, attempts=self.table.c.attempts + 1)
            .returning(*self.table.c)
        )
        return [self._record(row) for row in (await self._connection.execute(changed)).mappings()]

    async def settle(self, run_id: str, **values: object) -> None:
        """Note what became of one."""
        await self.update(self.table.c.run_id == run_id, **values)

    async def of_run(self, run_id: str) -> Delivery | None:
        """That run's, when its end is there."""
        return await self.find_one(self.table.c.run_id == run_id)


class ScheduleRepository(Repository[Schedule]):
    """Runs that begin by the clock."""

    table = tables.schedules
    record = Schedule

    async def of_owner(self, owner_id: str, limit: int) -> list[Schedule]:
        """An owner's, the oldest first."""
        table = self.table
        return await self.find_many(
            table.c.owner_id == owner_id, order_by=[table.c.created_at, table.c.id], limit=limit
        )

    async def count(self, owner_id: str) -> int:
        """How many an owner has."""
        query = select(func.count()).where(self.table.c.owner_id == owner_id)
        return int((await self._connection.execute(query)).scalar_one())

    async def due(self, now: datetime, limit: int) -> list[Schedule]:
        """Those whose moment has come."""
        table = self.table
        return await self.find_many(table.c.enabled, table.c.next_at <= now, order_by=[table.c.next_at], limit=limit)

    async def next_moment(self) -> datetime | None:
        """When the next of all schedules is due."""
        table = self.table
        query = select(table.c.next_at).where(table.c.enabled).order_by(table.c.next_at).limit(1)
        moment: datetime | None = (await self._connection.execute(query)).scalar()
        return moment

    async def fire(self, schedule: Schedule, next_at: datetime, now: datetime, **told: object) -> bool:
        """Take this moment of a schedule: True for exactly one of those who try."""
        table = self.table
        mine = (table.c.id == schedule.id, table.c.enabled, table.c.next_at == schedule.next_at)
        return await self.update(*mine, next_at=next_at, last_at=now, **told) == 1

    async def change(self, schedule_id: str, owner_id: str, **values: object) -> bool:
        """Change an owner's schedule; False: they have none of that id."""
        table = self.table
        return await self.update(table.c.id == schedule_id, table.c.owner_id == owner_id, **values) == 1

    async def remove(self, schedule_id: str, owner_id: str) -> bool:
        """Delete an owner's schedule; False: they have none of that id."""
        return await self.delete(self.table.c.id == schedule_id, self.table.c.owner_id == owner_id) == 1
