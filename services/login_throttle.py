"""Wrong passwords make the next try wait: longer each time, never for ever, the same for names that do not exist.

Three counters. One for (account, address): a person who mistypes, or one machine that guesses; it backs off up to
LOGIN_BACKOFF_MAX. One for the account over all addresses: many machines that guess; its wait stays short, so that
nobody can lock the owner out for long. One for the address alone: at most RATE_LIMIT_LOGIN tries in a minute. The
first two are rows, so that a restart forgives nothing; the third is memory.
"""

import math
from datetime import UTC, datetime, timedelta

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from config.settings import Settings
from core.database.engine import Database
from core.security import digest
from domain.errors import RateLimited

_FREE_TRIES = 5
_FREE_TRIES_OF_ACCOUNT = 50
_LONGEST_FOR_ACCOUNT = 30.0  # seconds; a nuisance to the owner, hopeless for a guesser
_FORGET = timedelta(days=1)


class LoginThrottle:
    """Says who has to wait."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._base = settings.security.login_backoff
        self._longest = settings.security.login_backoff_max
        self._per_minute = RateLimitItemPerMinute(settings.rate_limits.login_per_minute)
        self._addresses = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def check(self, username: str, address: str) -> None:
        """Return when a try may be made now.

        Raises:
            RateLimited: not yet; `retry_after` says when.
        """
        if not await self._addresses.hit(self._per_minute, "login", address):
            window = await self._addresses.get_window_stats(self._per_minute, "login", address)
            wait = max(1.0, window.reset_time - datetime.now(UTC).timestamp())
            raise RateLimited("Too many log-ins from this address.", retry_after=math.ceil(wait))
        async with self._database.reading() as work:
            until = await work.login_failures.blocked_until(list(_keys(username, address)))
        wait = (until - datetime.now(UTC)).total_seconds() if until else 0
        if wait > 0:
            raise RateLimited("Too many wrong passwords; wait a moment.", retry_after=math.ceil(wait))

    async def failed(self, username: str, address: str) -> None:
        """Take note of a wrong password."""
        pair, account = _keys(username, address)
        now = datetime.now(UTC)
        async with self._database.unit_of_work() as work:
            for key, free, longest in (
                (pair, _FREE_TRIES, self._longest),
                (account, _FREE_TRIES_OF_ACCOUNT, min(self._longest, _LONGEST_FOR_ACCOUNT)),
            ):
                failures = await work.login_failures.count(key, now, now - _FORGET)
                if failures >= free:
                    wait = min(longest, self._base * 2.0 ** min(failures - free, 30))
                    await work.login_failures.block(key, now + timedelta(seconds=wait))
            await work.login_failures.forget([], now - _FORGET)

    async def succeeded(self, username: str, address: str) -> None:
        """The right password: what this person mistyped here is forgotten."""
        pair, _account = _keys(username, address)
        async with self._database.reading() as work:
            until = await work.login_failures.blocked_until([pair])
        if until is not None:
            async with self._database.unit_of_work() as work:
                await work.login_failures.forget([pair], datetime.now(UTC) - _FORGET)


def _keys(username: str, address: str) -> tuple[str, str]:
    """Digests, so that the table holds neither typed names (people type passwords there) nor addresses."""
    return digest(f"pair\x00{username}\x00{address}"), digest(f"account\x00{username}")
