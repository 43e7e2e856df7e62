"""Everything that signs, verifies or hashes: the only module that touches python-jose and passlib (libpass).

python-jose 3.5 trusts what a token says of itself when it is let. It is not let (docs/adr/0003): the one algorithm is
ours, the key is chosen by us from `kid`, keys are PEM or secrets of 32 bytes and more (never DER), and every claim we
rely on is required. Whatever is wrong with a token, the caller learns only that it is not good.
"""

import asyncio
import base64
import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwt
from passlib.hash import argon2
from uuid_utils import uuid7

from config.settings import MIN_SECRET_BYTES, SecuritySettings, SettingsError
from core.secret_file import read_or_create_secret
from domain.errors import Unauthenticated

ISSUER = "routeur-ia-api"
AUDIENCE = "routeur-ia-api"
MAX_TOKEN_CHARS = 4_096  # ours are under 1,000; a longer one is not worth parsing
MAX_PASSWORD_CHARS = 1_024  # argon2 hashes any length, at our cost
CLIENT_SECRET_PREFIX = "ek_"  # noqa: S105 - what marks one, and no secret
_MIN_RSA_BITS = 2_048
_REFUSAL = "The credential is not valid."

MAX_SECRET_CHARS = 7_500  # a client secret carries its session; servers take header lines of 8 kB

TokenType = Literal["access", "refresh", "client_secret"]
_REQUIRED = {f"require_{claim}": True for claim in ("exp", "iat", "aud", "iss", "sub", "jti")}


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a good access token says."""

    user_id: str
    username: str
    scopes: tuple[str, ...]
    token_id: str
    family: str
    token_version: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str
    public: str  # PEM, or the secret of HS256
    jwk: dict[str, str] | None


class KeyRing:
    """The keys of one algorithm: one signs, all of them are believed.

    Raises:
        SettingsError: a key is missing, too weak, or not of the algorithm's kind.
    """

    def __init__(
        self, algorithm: Literal["HS256", "RS256", "ES256"], signing: str, former: tuple[str, ...] = ()
    ) -> None:
        self.algorithm = algorithm
        self._signing = signing
        own = _secret_key(signing) if algorithm == "HS256" else _public_key(algorithm, _public_pem(signing))
        self._signing_kid = own.kid
        self._keys = {own.kid: own} | {
            key.kid: key for key in (_public_key(algorithm, pem) for pem in former if algorithm != "HS256")
        }

    @classmethod
    def from_settings(cls, settings: SecuritySettings, data_dir: Path) -> "KeyRing":
        """The ring that the settings describe; HS256 without SECRET_KEY generates one and keeps it in `data_dir`."""
        if settings.jwt_algorithm == "HS256":
            given = settings.secret_key.get_secret_value() if settings.secret_key else None
            return cls("HS256", given or read_or_create_secret(data_dir / "secret_key"))
        if settings.jwt_private_key_file is None:
            raise SettingsError(f"JWT_ALGORITHM={settings.jwt_algorithm} needs JWT_PRIVATE_KEY_FILE")
        former = tuple(_read_pem(Path(path)) for path in settings.jwt_public_key_files)
        return cls(settings.jwt_algorithm, _read_pem(settings.jwt_private_key_file), former)

    @property
    def secret(self) -> str:
        """What only this house knows: other secrets are derived from it."""
        return self._signing

    def jwks(self) -> dict[str, list[dict[str, str]]] | None:
        """The public keys as a JWK set; None for HS256, whose key is a secret."""
        if self.algorithm == "HS256":
            return None
        return {"keys": [key.jwk for key in self._keys.values() if key.jwk is not None]}

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token of those claims, signed with the current key."""
        token: str = jwt.encode(dict(claims), self._signing, self.algorithm, headers={"kid": self._signing_kid})
        return token

    def verify(self, token: str, expected: TokenType) -> dict[str, Any]:
        """The claims of a good token.

        Raises:
            Unauthenticated: anything is wrong with it; the message does not say what.
        """
        most = MAX_SECRET_CHARS if expected == "client_secret" else MAX_TOKEN_CHARS
        if len(token) > most or token.count(".") != 2 or not token.isascii():
            raise Unauthenticated(_REFUSAL)
        try:
            header = orjson.loads(_from_base64(token[: token.index(".")]))
            if header["alg"] != self.algorithm or "crit" in header or header.get("typ", "JWT") != "JWT":
                raise Unauthenticated(_REFUSAL)
            claims: dict[str, Any] = jwt.decode(
                token,
                self._keys[header["kid"]].public,
                algorithms=[self.algorithm],
                audience=AUDIENCE,
                issuer=ISSUER,
                options=_REQUIRED,
            )
        except Unauthenticated:
            raise
        except Exception as error:  # python-jose lets TypeError, KeyError, ... through on hostile input
            raise Unauthenticated(_REFUSAL) from error
        if claims.get("typ") != expected or claims["aud"] != AUDIENCE:
            raise Unauthenticated(_REFUSAL)
        return claims


def issue_access_token(
    ring: KeyRing, *, user_id: str, username: str, scopes: tuple[str, ...], family: str, token_version: int, ttl: int
) -> str:
    """A signed access token that is good for `ttl` seconds."""
    now = int(time.time())
    standard = {"iss": ISSUER, "aud": AUDIENCE, "jti": uuid7().hex, "iat": now, "nbf": now, "exp": now + ttl}
    ours = {"typ": "access", "name": username, "scope": " ".join(scopes), "sid": family, "ver": token_version}
    return ring.sign({"sub": user_id, **standard, **ours})


def read_access_token(ring: KeyRing, token: str) -> AccessClaims:
    """The claims of a good access token.

    Raises:
        Unauthenticated: it is not one.
    """
    claims = ring.verify(token, "access")
    try:
        return AccessClaims(
            user_id=str(claims["sub"]),
            username=str(claims["name"]),
            scopes=tuple(str(claims["scope"]).split()),
            token_id=str(claims["jti"]),
            family=str(claims["sid"]),
            token_version=int(claims["ver"]),
            expires_at=float(claims["exp"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Unauthenticated(_REFUSAL) from error


@dataclass(frozen=True, slots=True)
class SecretClaims:
    """What a good client secret says: whose it is, by what credential it was made, and the session it opens."""

    user_id: str
    token_version: int
    family: str | None
    key_id: str | None
    scopes: tuple[str, ...]
    session: dict[str, Any]
    secret_id: str
    expires_at: float


def issue_client_secret(
    ring: KeyRing,
    *,
    user_id: str,
    token_version: int,
    family: str | None,
    key_id: str | None,
    scopes: tuple[str, ...],
    session: Mapping[str, Any],
    ttl: int,
) -> tuple[str, int]:
    """A signed secret that opens one kind of realtime session for `ttl` seconds, and when it ends.

    Raises:
        ValueError: the session is too large to be carried.
    """
    now = int(time.time())
    standard = {"iss": ISSUER, "aud": AUDIENCE, "jti": uuid7().hex, "iat": now, "nbf": now, "exp": now + ttl}
    ours = {
        "typ": "client_secret",
        "ver": token_version,
        "sid": family,
        "key": key_id,
        "scope": " ".join(scopes),
        "session": dict(session),
    }
    token = ring.sign({"sub": user_id, **standard, **ours})
    if len(token) > MAX_SECRET_CHARS:
        raise ValueError("too large")
    return CLIENT_SECRET_PREFIX + token, now + ttl


def read_client_secret(ring: KeyRing, secret: str) -> SecretClaims:
    """The claims of a good client secret.

    Raises:
        Unauthenticated: it is not one.
    """
    claims = ring.verify(secret.removeprefix(CLIENT_SECRET_PREFIX), "client_secret")
    try:
        return SecretClaims(
            user_id=str(claims["sub"]),
            token_version=int(claims["ver"]),
            family=claims["sid"],
            key_id=claims["key"],
            scopes=tuple(str(claims["scope"]).split()),
            session=dict(claims["session"]),
            secret_id=str(claims["jti"]),
            expires_at=float(claims["exp"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Unauthenticated(_REFUSAL) from error


class PasswordHasher:
    """argon2id in threads, a few at a time: each hash takes 64 MiB and about 90 ms of one core on purpose.

    Args:
        memory_kib, rounds, lanes: argon2's costs; the defaults are RFC 9106's second recommendation.
        at_once: hashes at the same moment; more wait.
    """

    def __init__(self, *, memory_kib: int = 65_536, rounds: int = 3, lanes: int = 4, at_once: int = 2) -> None:
        self._argon2 = argon2.using(  # type: ignore[no-untyped-call]
            type="ID", memory_cost=memory_kib, time_cost=rounds, parallelism=lanes
        )
        self._turn = asyncio.Semaphore(at_once)
        self._decoy: str | None = None

    async def hash(self, password: str) -> str:
        """The PHC string to be stored."""
        async with self._turn:
            hashed: str = await asyncio.to_thread(self._argon2.hash, password)
            return hashed

    async def verify(self, password: str, stored: str | None) -> bool:
        """True when `password` is the one. `stored` None (no such user) costs the same and is always False."""
        if len(password) > MAX_PASSWORD_CHARS:
            password, stored = "", None
        if self._decoy is None:
            self._decoy = await self.hash(secrets.token_urlsafe())
        async with self._turn:
            good = await asyncio.to_thread(self._argon2.verify, password, stored or self._decoy)
        return bool(good) and stored is not None

    def is_outdated(self, stored: str) -> bool:
        """True when `stored` was made at other costs and should be made again."""
        return bool(self._argon2.needs_update(stored))


def new_secret(prefix: str) -> str:
    """`prefix` and 256 random bits: an API key (`rk_`) or a refresh token (`rt_`)."""
    return prefix + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is stored of such a secret: SHA-256, hex. It has 256 bits already, so no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_password() -> str:
    """A password for the first admin: 120 random bits."""
    return secrets.token_urlsafe(15)


def _secret_key(secret: str) -> _Key:
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise SettingsError(f"SECRET_KEY must be at least {MIN_SECRET_BYTES} bytes")
    kid = hashlib.sha256(b"routeur kid\x00" + secret.encode()).hexdigest()[:16]
    return _Key(kid, secret, None)


def _public_key(algorithm: str, pem: str) -> _Key:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except ValueError as error:
        raise SettingsError("a JWT key file is not a PEM public key") from error
    if algorithm == "RS256" and isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        numbers = key.public_numbers()
        jwk = {
            "e": _number(numbers.e, (numbers.e.bit_length() + 7) // 8),
            "kty": "RSA",
            "n": _number(numbers.n, key.key_size // 8),
        }
    elif algorithm == "ES256" and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        point = key.public_numbers()
        jwk = {"crv": "P-256", "kty": "EC", "x": _number(point.x, 32), "y": _number(point.y, 32)}
    else:
        raise SettingsError(f"a JWT key file does not fit {algorithm} (RSA of 2048 bits and more, or EC P-256)")
    # RFC 7638: the thumbprint of the required members in this order names the key
    kid = _to_base64(hashlib.sha256(orjson.dumps(jwk, option=orjson.OPT_SORT_KEYS)).digest())
    return _Key(kid, pem, {**jwk, "kid": kid, "use": "sig", "alg": algorithm})


def _public_pem(private_pem: str) -> str:
    try:
        key = serialization.load_pem_private_key(private_pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise SettingsError("JWT_PRIVATE_KEY_FILE is not an unencrypted PEM private key") from error
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public.decode()


def _read_pem(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the JWT key file {path.name} cannot be read as PEM") from error
    if "-----BEGIN" not in text:
        raise SettingsError(f"the JWT key file {path.name} is not PEM")
    return text


def _number(value: int, size: int) -> str:
    return _to_base64(value.to_bytes(size, "big"))


def _to_base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
