"""The repositories of one transaction."""

from core.surreal.connection import Engine
from core.surreal.runs import ModelCallRepository, RunRepository
from core.surreal.sessions import RawMessageRepository, SessionRepository, SimpleMessageRepository
from core.surreal.transaction import Transaction


class SurrealWork(Transaction):
    """`domain.ports.RecordWork`."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.sessions = SessionRepository(self)
        self.raw_messages = RawMessageRepository(self, self.sessions)
        self.simple_messages = SimpleMessageRepository(self)
        self.runs = RunRepository(self)
        self.model_calls = ModelCallRepository(self)
