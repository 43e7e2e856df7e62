"""The same request twice is done once: `Idempotency-Key` on everything that creates.

The answer is kept for a day, sealed with the key itself, so that whoever reads the database reads no answers (one of
them may be a new API key). A request that failed leaves nothing: it may be tried again.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson

from core.database.engine import Database
from core.database.repositories.idempotency import IdempotencyRow
from core.sealing import key_digest, seal, unseal
from domain.errors import Conflict, InvalidRequest

LEASE = timedelta(seconds=30)  # how long a key is held for a process that may have died; renewed while it works
KEPT_FOR = timedelta(hours=24)
MAX_KEY_CHARS = 255
MAX_ANSWER_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to answer a key.

    `made_id` is the id (UUIDv7) for what the request makes: the same when a process died over it and it is asked again,
    so that whoever writes it down can see that it is there already.
    """

    owner_id: str
    key: str
    made_id: str


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What was answered the first time."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class IdempotencyService:
    """Keys of each owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, owner_id: str, key: str, fingerprint: str) -> Claim | KeptAnswer:
        """The right to answer, or what was answered.

        Args:
            fingerprint: of method, path and body; the same key with another one is a mistake.

        Raises:
            InvalidRequest: no such key can be.
            Conflict: it was used for something else, or the first request is still being answered.
        """
        if not 0 < len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
            raise InvalidRequest(
                f"Idempotency-Key must be 1 to {MAX_KEY_CHARS} printable ASCII characters.", param="Idempotency-Key"
            )
        digest, now = key_digest(key), datetime.now(UTC)
        async with self._database.unit_of_work() as work:
            known = await work.idempotency_keys.find(owner_id, digest)
            if known is not None and not _is_over(known, now):
                return self._answered(known, key, fingerprint)
            first = now
            if known is not None:
                await work.idempotency_keys.forget(owner_id, digest)
                if known.created_at >= now - KEPT_FOR:
                    first = known.created_at
            await work.idempotency_keys.claim(
                IdempotencyRow(
                    owner_id=owner_id,
                    key_hash=digest,
                    fingerprint=fingerprint,
                    lease_until=now + LEASE,
                    status_code=None,
                    answer=None,
                    created_at=first,
                )
            )
        return Claim(owner_id, key, _made_id(owner_id, digest, first))

    async def renew(self, claim: Claim) -> None:
        """Still at work."""
        async with self._database.unit_of_work() as work:
            await work.idempotency_keys.renew(claim.owner_id, key_digest(claim.key), datetime.now(UTC) + LEASE)

    async def keep(self, claim: Claim, answer: KeptAnswer) -> None:
        """Answer the same from now on."""
        head = orjson.dumps({"headers": answer.headers})
        content = seal(claim.key, head + b"\n" + answer.body)
        async with self._database.unit_of_work() as work:
            await work.idempotency_keys.keep(claim.owner_id, key_digest(claim.key), answer.status, content)

    async def release(self, claim: Claim) -> None:
        """It came to nothing; let it be tried again."""
        async with self._database.unit_of_work() as work:
            await work.idempotency_keys.forget(claim.owner_id, key_digest(claim.key))

    async def sweep(self, limit: int) -> int:
        """Forget what is older than a day, at most `limit`; how many there were."""
        async with self._database.unit_of_work() as work:
            return await work.idempotency_keys.sweep(datetime.now(UTC) - KEPT_FOR, limit)

    def _answered(self, known: IdempotencyRow, key: str, fingerprint: str) -> KeptAnswer:
        if known.fingerprint != fingerprint:
            raise Conflict(
                "This Idempotency-Key was used for another request.",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        if known.answer is None or known.status_code is None:
            raise Conflict(
                "The first request with this Idempotency-Key is still being answered.",
                code="idempotency_in_progress",
                param="Idempotency-Key",
                retry_after=1,
            )
        head, _, body = unseal(key, known.answer).partition(b"\n")
        headers = [(name, value) for name, value in orjson.loads(head)["headers"]]
        return KeptAnswer(known.status_code, headers, body)


def _made_id(owner_id: str, digest: str, first: datetime) -> str:
    """The moment of the first asking, and bits that nobody else's key gives."""
    bits = int.from_bytes(hashlib.sha256(f"{owner_id}:{digest}".encode()).digest()[:16])
    moment = int(first.timestamp() * 1000)
    return str(UUID(int=moment << 80 | 7 << 76 | (bits >> 64 & 0xFFF) << 64 | 2 << 62 | bits & (1 << 62) - 1))


def _is_over(known: IdempotencyRow, now: datetime) -> bool:
    """Too old, or its process is gone."""
    if known.created_at < now - KEPT_FOR:
        return True
    return known.answer is None and (known.lease_until is None or known.lease_until < now)
