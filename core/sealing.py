"""Keeping an answer so that only who asks for it again can read it."""

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken


def key_digest(key: str) -> str:
    """What is stored of a key: enough to find it, not enough to open what it seals."""
    return hashlib.sha256(b"find:" + key.encode()).hexdigest()


def seal(key: str, content: bytes) -> bytes:
    """`content`, readable with `key` alone."""
    return _fernet(key).encrypt(content)


def unseal(key: str, sealed: bytes) -> bytes:
    """What was sealed.

    Raises:
        ValueError: it was sealed with another key, or changed.
    """
    try:
        return _fernet(key).decrypt(sealed)
    except InvalidToken as error:
        raise ValueError("not sealed with this key") from error


def _fernet(key: str) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(b"seal:" + key.encode()).digest()))
