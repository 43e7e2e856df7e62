"""Who calls? FastAPI dependencies that turn a request's or a socket's credential into a `Principal`."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from domain.auth import Principal, Scope
from domain.errors import Forbidden, Unauthenticated
from domain.ports import Authenticator

MAX_CREDENTIAL_CHARS = 8_192
KEY_SUBPROTOCOL = "openai-insecure-api-key."


def credential_of(connection: HTTPConnection) -> str:
    """The credential in `Authorization: Bearer` or `x-api-key`. Never in the URL: addresses end in logs.

    Raises:
        Unauthenticated: there is none, or more than one.
    """
    header = connection.headers.get("authorization")
    key = connection.headers.get("x-api-key")
    if header is not None and key is not None:
        raise Unauthenticated("Send either Authorization or x-api-key, not both.")
    if header is not None:
        scheme, _, credential = header.partition(" ")
        credential = credential.strip() if scheme.lower() == "bearer" else ""
    else:
        credential = (key or "").strip()
    if not credential or len(credential) > MAX_CREDENTIAL_CHARS:
        raise Unauthenticated("A bearer token or an API key is needed.")
    return credential


def socket_credential_of(connection: HTTPConnection) -> str:
    """The same of a WebSocket; browsers, which cannot set headers there, send it beside the subprotocol `realtime`.

    Raises:
        Unauthenticated: there is none, or more than one.
    """
    offered: list[str] = connection.scope.get("subprotocols") or []
    keys = [one.removeprefix(KEY_SUBPROTOCOL) for one in offered if one.startswith(KEY_SUBPROTOCOL)]
    if not keys:
        return credential_of(connection)
    if len(keys) > 1 or "authorization" in connection.headers or "x-api-key" in connection.headers:
        raise Unauthenticated("Send one credential, not several.")
    if not keys[0] or len(keys[0]) > MAX_CREDENTIAL_CHARS:
        raise Unauthenticated("A bearer token or an API key is needed.")
    return keys[0]


async def current_user(connection: HTTPConnection) -> Principal:
    """The caller.

    Raises:
        Unauthenticated: no good credential.
    """
    authenticator: Authenticator = connection.app.state.authenticator
    return await authenticator.authenticate(credential_of(connection))


CurrentUser = Annotated[Principal, Depends(current_user)]


def require(scope: Scope) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    """A dependency: the caller, who holds `scope` (or is an admin).

    Raises:
        Forbidden: when asked by someone who does not.
    """

    async def holder(connection: HTTPConnection) -> Principal:
        return await holder_of(scope, connection)

    return holder


async def holder_of(scope: Scope, connection: HTTPConnection) -> Principal:
    """The caller, who holds `scope` (or is an admin).

    Raises:
        Unauthenticated: no good credential.
        Forbidden: they do not hold it.
    """
    caller = await current_user(connection)
    if not caller.may(scope):
        raise Forbidden(f"The scope '{scope.value}' is needed.", code="missing_scope")
    return caller
