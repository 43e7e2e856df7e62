"""A secret that is made once and kept in a file only we can read."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from config.settings import MIN_SECRET_BYTES, SettingsError


def read_or_create_secret(path: Path) -> str:
    """The secret in `path`; made, mode 0600, when there is none. Two processes that start at once get the same one.

    Raises:
        SettingsError: the file cannot be written, or holds something too short.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _create(path)
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"SECRET_KEY is not set and {path.name} in DATA_DIR cannot be used ({error})") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise SettingsError(f"{path.name} in DATA_DIR is too short; delete it, or set SECRET_KEY")
    return secret


def _create(path: Path) -> None:
    if path.exists():
        return
    # Written whole under another name, then linked: a reader never sees half a secret, the first writer wins.
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
