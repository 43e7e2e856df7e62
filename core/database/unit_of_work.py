"""One use case, one transaction: everything in it is written, or nothing."""

from collections.abc import Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.record_scripts import Codec, Script, T
from core.database.repositories.background import ApprovalRepository, DeliveryRepository, ScheduleRepository
from core.database.repositories.credentials import (
    ApiKeyRepository,
    AuthEpochRepository,
    LoginFailureRepository,
    RefreshTokenRepository,
)
from core.database.repositories.idempotency import IdempotencyRepository
from core.database.repositories.runs import RunRepository
from core.database.repositories.sessions import (
    ModelCallRepository,
    RawMessageRepository,
    SessionRepository,
    SimpleMessageRepository,
)
from core.database.repositories.users import UserRepository
from core.database.script_runner import run_script_on


class UnitOfWork:
    """The repositories of one transaction. Get one from `Database.unit_of_work()`; leaving it cleanly commits."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.users = UserRepository(connection)
        self.api_keys = ApiKeyRepository(connection)
        self.refresh_tokens = RefreshTokenRepository(connection)
        self.login_failures = LoginFailureRepository(connection)
        self.auth_epoch = AuthEpochRepository(connection)
        self.sessions = SessionRepository(connection)
        self.raw_messages = RawMessageRepository(connection)
        self.simple_messages = SimpleMessageRepository(connection)
        self.runs = RunRepository(connection)
        self.model_calls = ModelCallRepository(connection)
        self.idempotency_keys = IdempotencyRepository(connection)
        self.approvals = ApprovalRepository(connection)
        self.deliveries = DeliveryRepository(connection)
        self.schedules = ScheduleRepository(connection)
        self._connection = connection

    async def run_script(self, script: Callable[[Codec], Script[T]]) -> T:
        """Run one of the writer's scripts as part of this transaction."""
        return await run_script_on(self._connection, script(Codec(self._connection.dialect.name)))

    async def driver_connection(self) -> Any:
        """The driver's own connection, for a library that writes into this transaction."""
        return (await self._connection.get_raw_connection()).driver_connection
