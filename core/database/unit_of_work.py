"""One use case, one transaction: everything in it is written, or nothing."""

from sqlalchemy.ext.asyncio import AsyncConnection

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
