"""Attacks on tokens. Each is a 401: never let in, never a crash, never a hint."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from config.settings import SecuritySettings, Settings, SettingsError
from core.security import KeyRing, new_secret, read_access_token
from domain.errors import Unauthenticated
from tests.fakes.house import ADMIN_PASSWORD, House, house_settings, open_house

pytestmark = pytest.mark.anyio

Algorithm = str
ALGORITHMS: tuple[Algorithm, ...] = ("HS256", "RS256", "ES256")


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def part(value: Any) -> str:
    return b64(json.dumps(value).encode())


def opened(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, claims, _ = token.split(".")
    return tuple(json.loads(base64.urlsafe_b64decode(one + "==")) for one in (header, claims))  # type: ignore[return-value]


def hs256(header: dict[str, Any], claims: dict[str, Any], key: bytes) -> str:
    signed = f"{part(header)}.{part(claims)}"
    return f"{signed}.{b64(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


def private_key(algorithm: str) -> Any:
    return rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())


def pem_of(key: Any) -> bytes:
    return bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def public_of(key: Any, encoding: serialization.Encoding) -> bytes:
    return bytes(key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture(params=ALGORITHMS)
async def guarded(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[House, Any]]:
    """A house whose tokens are signed with one of the algorithms, and its private key (None for HS256)."""
    key, tmp_path = None, tmp_path_factory.mktemp("guarded")
    settings = house_settings(tmp_path, template)
    security = SecuritySettings(admin_password=ADMIN_PASSWORD)
    if request.param != "HS256":
        key = private_key(request.param)
        (tmp_path / "key.pem").write_bytes(pem_of(key))
        security = security.model_copy(
            update={"jwt_algorithm": request.param, "jwt_private_key_file": tmp_path / "key.pem"}
        )
    async with open_house(settings.model_copy(update={"security": security})) as house:
        yield house, key


def ring_of(house: House) -> KeyRing:
    return house.services.auth.ring


Forge = Callable[[House, Any, str], str]


def without_signature(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    return f"{part({**header, 'alg': 'none'})}.{part(claims)}."


def with_none_in_capitals(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    return f"{part({**header, 'alg': 'nOnE'})}.{part(claims)}."


def signature_removed(house: House, key: Any, token: str) -> str:
    return token.rsplit(".", 1)[0] + "."


def hmac_with_the_public_pem(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    secret = public_of(key, serialization.Encoding.PEM) if key else b"x" * 32
    return hs256({**header, "alg": "HS256"}, {**claims, "scope": "admin"}, secret)


def hmac_with_the_public_der(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    secret = public_of(key, serialization.Encoding.DER) if key else b"y" * 32
    return hs256({**header, "alg": "HS256"}, {**claims, "scope": "admin"}, secret)


def hmac_with_nothing(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    return hs256({**header, "alg": "HS256"}, claims, b"")


def hmac_with_a_short_key(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    return hs256({**header, "alg": "HS256"}, claims, b"secret")


def other_algorithm_of_the_family(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    header["alg"] = {"HS256": "HS512", "RS256": "RS512", "ES256": "ES384"}[header["alg"]]
    return f"{part(header)}.{part(claims)}.{token.rsplit('.', 1)[1]}"


def unknown_kid(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    return f"{part({**header, 'kid': 'other'})}.{part(claims)}.{token.rsplit('.', 1)[1]}"


def no_kid(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    header.pop("kid")
    return f"{part(header)}.{part(claims)}.{token.rsplit('.', 1)[1]}"


def kid_is_a_path(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    return hs256({**header, "kid": "../../dev/null"}, claims, b"")


def kid_is_a_list(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    return f"{part({**header, 'kid': ['a']})}.{part(claims)}.{token.rsplit('.', 1)[1]}"


def own_key_in_the_header(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    mine = private_key("RS256")
    numbers = mine.public_key().public_numbers()
    jwk = {"kty": "RSA", "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB"}
    signed = f"{part({**header, 'alg': 'RS256', 'jwk': jwk, 'jku': 'http://evil.example/'})}.{part(claims)}"
    return f"{signed}.{b64(mine.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def tampered_claims(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    return f"{part(header)}.{part({**claims, 'sub': 'somebody-else'})}.{token.rsplit('.', 1)[1]}"


def tampered_signature(house: House, key: Any, token: str) -> str:
    head, signature = token.rsplit(".", 1)
    return f"{head}.{('A' if signature[0] != 'A' else 'B') + signature[1:]}"


def another_house(house: House, key: Any, token: str) -> str:
    header, claims = opened(token)
    return hs256({**header, "alg": "HS256"}, claims, new_secret("").encode())


def encrypted(house: House, key: Any, token: str) -> str:
    return ".".join([part({"alg": "dir", "enc": "A256GCM"}), "", b64(b"1" * 12), b64(b"2" * 40), b64(b"3" * 16)])


def of_other_shape(house: House, key: Any, token: str) -> str:
    return "a.b"


def rubbish(house: House, key: Any, token: str) -> str:
    return "....".join(["%00", "{}", "[]"])


def header_is_a_list(house: House, key: Any, token: str) -> str:
    return f"{part(['alg', 'HS256'])}.{token.split('.', 1)[1]}"


def header_is_deep(house: House, key: Any, token: str) -> str:
    return f"{b64(b'[' * 1200)}.{token.split('.', 1)[1]}"


def oversized(house: House, key: Any, token: str) -> str:
    return f"{token}{'A' * 7_000}"


IN_THE_FUTURE = 4_000_000_000  # a constant: every process of the tests must give them the same names


def good_key(claim: str, value: Any) -> Forge:
    """Signed by the house itself, with one claim that is not as it should be."""

    def forge(house: House, key: Any, token: str) -> str:
        _, claims = opened(token)
        if value is None:
            claims.pop(claim)
        else:
            claims[claim] = value
        return ring_of(house).sign(claims)

    forge.__name__ = f"signed_but_{claim}_is_{'missing' if value is None else str(value)[:20]}"
    return forge


ATTACKS: tuple[Forge, ...] = (
    without_signature,
    with_none_in_capitals,
    signature_removed,
    hmac_with_the_public_pem,
    hmac_with_the_public_der,
    hmac_with_nothing,
    hmac_with_a_short_key,
    other_algorithm_of_the_family,
    unknown_kid,
    no_kid,
    kid_is_a_path,
    kid_is_a_list,
    own_key_in_the_header,
    tampered_claims,
    tampered_signature,
    another_house,
    encrypted,
    of_other_shape,
    rubbish,
    header_is_a_list,
    header_is_deep,
    oversized,
    *(
        good_key(claim, None)
        for claim in ("exp", "iat", "aud", "iss", "sub", "jti", "typ", "ver", "sid", "scope", "name")
    ),
    good_key("aud", "another-service"),
    good_key("aud", ["routeur-ia-api", "another-service"]),
    good_key("iss", "somebody"),
    good_key("typ", "refresh"),
    good_key("exp", 1),
    good_key("exp", "tomorrow"),
    good_key("nbf", IN_THE_FUTURE),
    good_key("sub", "no-such-user"),
    good_key("ver", 99),
    good_key("ver", "x"),
    good_key("sid", "no-such-family"),
    good_key("sub", 7),
)


@pytest.mark.parametrize("forge", ATTACKS, ids=lambda forge: forge.__name__)
async def test_a_forged_token_is_refused(guarded: tuple[House, Any], forge: Forge) -> None:
    house, key = guarded
    good = house.tokens["access_token"]
    assert (await house.me(good)).status_code == 200, "the genuine one works"
    answer = await house.me(forge(house, key, good))
    assert answer.status_code == 401
    assert "www-authenticate" in answer.headers
    assert answer.json()["detail"] in ("The credential is not valid.", "A bearer token or an API key is needed.")


async def test_a_crit_header_is_refused_even_when_the_signature_is_good(house: House) -> None:
    _, claims = opened(house.tokens["access_token"])
    ring = ring_of(house)
    header, _ = opened(house.tokens["access_token"])
    secret = (house.services.settings.storage.data_dir / "secret_key").read_bytes().strip()
    assert read_access_token(ring, hs256(header, claims, secret)).username == "admin", "the test knows the key"
    with pytest.raises(Unauthenticated):
        read_access_token(ring, hs256({**header, "crit": ["exp"]}, claims, secret))


async def test_a_refresh_token_opens_nothing(house: House) -> None:
    assert (await house.me(house.tokens["refresh_token"])).status_code == 401


async def test_an_access_token_refreshes_nothing(house: House) -> None:
    assert (await house.refresh(house.tokens["access_token"])).status_code == 401


@pytest.mark.parametrize("name", ["token", "access_token", "api_key", "key", "authorization"])
async def test_a_token_in_the_address_is_not_read(house: House, name: str) -> None:
    answer = await house.anyone.get("/auth/me", params={name: house.tokens["access_token"]})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Basic YTpi", "Token abc", "bearer a b c", "Bearer rk_", "Bearer rk_" + "x" * 43],
)
async def test_a_header_that_is_no_credential_is_refused(house: House, header: str) -> None:
    answer = await house.anyone.get("/auth/me", headers={"authorization": header})
    assert answer.status_code == 401


async def test_two_credentials_at_once_are_refused(house: House) -> None:
    headers = {"authorization": f"Bearer {house.tokens['access_token']}", "x-api-key": "rk_x"}
    assert (await house.anyone.get("/auth/me", headers=headers)).status_code == 401


async def test_public_keys_verify_our_tokens_and_a_secret_is_never_shown(guarded: tuple[House, Any]) -> None:
    house, key = guarded
    answer = await house.anyone.get("/.well-known/jwks.json")
    if key is None:
        assert answer.status_code == 404
        return
    (jwk,) = answer.json()["keys"]
    header, _ = opened(house.tokens["access_token"])
    assert (jwk["kid"], jwk["alg"], jwk["use"]) == (header["kid"], header["alg"], "sig")
    assert not {"d", "p", "q", "k"} & set(jwk)


async def test_after_a_rotation_old_tokens_live_and_new_ones_have_the_new_kid(
    settings: Settings, tmp_path: Path
) -> None:
    old, new = private_key("ES256"), private_key("ES256")
    (tmp_path / "old.pem").write_bytes(pem_of(old))
    (tmp_path / "new.pem").write_bytes(pem_of(new))
    (tmp_path / "old.pub").write_bytes(public_of(old, serialization.Encoding.PEM))

    def signed_with(private: str, *former: str) -> Settings:
        security = SecuritySettings(
            admin_password=ADMIN_PASSWORD,
            jwt_algorithm="ES256",
            jwt_private_key_file=tmp_path / private,
            jwt_public_key_files=tuple(str(tmp_path / one) for one in former),
        )
        return settings.model_copy(update={"security": security})

    async with open_house(signed_with("old.pem")) as house:
        before = house.tokens["access_token"]
    async with open_house(signed_with("new.pem", "old.pub")) as house:
        after = house.tokens["access_token"]
        assert (await house.me(before)).status_code == 200
        assert opened(before)[0]["kid"] != opened(after)[0]["kid"]
        assert len((await house.anyone.get("/.well-known/jwks.json")).json()["keys"]) == 2
    async with open_house(signed_with("new.pem")) as house:
        assert (await house.me(before)).status_code == 401, "a key that is no longer named is no longer believed"
        assert (await house.me(after)).status_code == 200


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_key_that_is_der_or_of_another_kind_is_refused_at_the_start(algorithm: str, tmp_path: Path) -> None:
    right, wrong = private_key(algorithm), private_key("ES256" if algorithm == "RS256" else "RS256")
    der = right.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for content in (der, pem_of(wrong), public_of(right, serialization.Encoding.PEM), b"", b"-----BEGIN nothing"):
        (tmp_path / "key.pem").write_bytes(content)
        settings = SecuritySettings(jwt_algorithm=algorithm, jwt_private_key_file=tmp_path / "key.pem")  # type: ignore[arg-type]
        with pytest.raises(SettingsError):
            KeyRing.from_settings(settings, tmp_path)


def test_a_small_rsa_key_is_refused_at_the_start() -> None:
    small = rsa.generate_private_key(65537, 1024)
    with pytest.raises(SettingsError, match="2048"):
        KeyRing("RS256", pem_of(small).decode())


@pytest.mark.parametrize("secret", ["", "short", "x" * 31])
def test_an_empty_or_short_secret_is_refused_at_the_start(secret: str) -> None:
    with pytest.raises(SettingsError, match="32"):
        KeyRing("HS256", secret)
