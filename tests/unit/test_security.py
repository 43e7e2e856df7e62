"""Hashes and keys by themselves; attacks through the front door are in `integration/test_token_attacks.py`."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from config.settings import SecuritySettings, SettingsError
from core.secret_file import read_or_create_secret
from core.security import (
    MAX_PASSWORD_CHARS,
    KeyRing,
    PasswordHasher,
    digest,
    issue_access_token,
    new_secret,
    read_access_token,
)
from domain.errors import Unauthenticated

pytestmark = pytest.mark.anyio


def hasher(**more: int) -> PasswordHasher:
    return PasswordHasher(**{"memory_kib": 64, "rounds": 1, "lanes": 1, **more})


class Recording:
    """The real argon2, with a note of each password that it was given and of how many work at once."""

    def __init__(self, real: object) -> None:
        self.real = real
        self.asked: list[str] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def verify(self, password: str, stored: str) -> bool:
        with self._lock:
            self.asked.append(password)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return bool(self.real.verify(password, stored))  # type: ignore[attr-defined]
        finally:
            with self._lock:
                self._now -= 1


async def test_the_right_password_is_right_and_others_are_not() -> None:
    one = hasher()
    stored = await one.hash("correct horse")
    assert stored.startswith("$argon2id$")
    assert await one.verify("correct horse", stored)
    for wrong in ("", "Correct horse", "correct horse ", "correct horse\x00", "x" * 5_000):
        assert not await one.verify(wrong, stored)


async def test_long_passwords_count_to_their_last_letter() -> None:
    one = hasher()
    password = "p" * (MAX_PASSWORD_CHARS - 1)
    stored = await one.hash(password + "a")
    assert await one.verify(password + "a", stored)
    assert not await one.verify(password + "b", stored)


async def test_a_user_who_does_not_exist_costs_the_same_work() -> None:
    one = hasher()
    recording = Recording(one._argon2)
    one._argon2 = recording
    stored = await one.hash("secret")
    assert not await one.verify("guess", stored)
    assert not await one.verify("guess", None)
    assert recording.asked == ["guess", "guess"], "one verification each, the decoy's too"
    assert not await one.verify("secret", None)


async def test_only_a_few_hash_at_once() -> None:
    one = hasher(at_once=2)
    recording = Recording(one._argon2)
    stored = await one.hash("secret")
    one._argon2 = recording
    await asyncio.gather(*(one.verify("secret", stored) for _ in range(12)))
    assert len(recording.asked) == 12
    assert recording.most <= 2


async def test_a_hash_of_other_costs_is_renewed_at_the_next_login() -> None:
    stored = await hasher().hash("secret")
    assert not hasher().is_outdated(stored)
    assert hasher(rounds=2).is_outdated(stored)


def test_the_default_costs_are_those_of_the_rfc() -> None:
    """RFC 9106, second recommendation: 64 MiB, 3 passes, 4 lanes."""
    argon2 = PasswordHasher()._argon2
    assert (argon2.memory_cost, argon2.default_rounds, argon2.parallelism) == (65_536, 3, 4)


def test_secrets_are_long_random_and_stored_as_digests() -> None:
    first, second = new_secret("rk_"), new_secret("rk_")
    assert first != second
    assert len(first) == 46
    assert len(digest(first)) == 64
    assert first not in digest(first)


def test_a_token_says_what_was_put_in_and_ends_in_time() -> None:
    ring = KeyRing("HS256", "k" * 32)
    token = issue_access_token(
        ring, user_id="u", username="ada", scopes=("completion",), family="f", token_version=3, ttl=60
    )
    claims = read_access_token(ring, token)
    assert (claims.user_id, claims.username, claims.scopes, claims.family, claims.token_version) == (
        "u", "ada", ("completion",), "f", 3,
    )  # fmt: skip
    with pytest.raises(Unauthenticated):
        read_access_token(KeyRing("HS256", "j" * 32), token)


def test_the_secret_file_is_made_once_whoever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "secret_key"
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(read_or_create_secret(path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["secret_key"], "no draft is left"  # noqa: PTH208


def test_a_secret_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret_key").write_text("short")
    with pytest.raises(SettingsError, match="too short"):
        KeyRing.from_settings(SecuritySettings(), tmp_path)
