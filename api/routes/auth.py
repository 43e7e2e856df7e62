"""Log in, stay logged in, log out; API keys; the public keys of our tokens."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Path, Request, Response

from api.dependencies import ApiKeyServiceDep, AuthServiceDep
from api.errors import problem_responses
from api.openapi import OPEN
from core.dependencies import CurrentUser, credential_of
from domain.errors import InvalidRequest, NotFound
from domain.users import ApiKeyList, CreatedApiKey, Me, NewApiKey, TokenPair

router = APIRouter(tags=["auth"])

RecordId = Annotated[str, Path(max_length=64)]
Text = Annotated[str | None, Form(max_length=8_192)]
_NO_STORE = {"cache-control": "no-store"}


@router.post("/auth/token", openapi_extra=OPEN, responses=problem_responses(401, 422, 429))
async def issue_token(
    request: Request,
    response: Response,
    auth: AuthServiceDep,
    grant_type: Annotated[Literal["password", "refresh_token"], Form()],
    username: Text = None,
    password: Annotated[str | None, Form(max_length=8_192, json_schema_extra={"format": "password"})] = None,
    refresh_token: Text = None,
    scope: Text = None,
    client_id: Text = None,
    client_secret: Text = None,
) -> TokenPair:
    """Tokens for a password, or for a refresh token (which is spent by this).

    `scope` narrows what the tokens may do. There are no OAuth clients here: `client_id` and `client_secret` stay empty.
    """
    if client_id or client_secret:
        raise InvalidRequest(
            "There are no OAuth clients here; leave client_id and client_secret out.", param="client_id"
        )
    response.headers.update(_NO_STORE)
    scopes = scope.split() if scope else None
    if grant_type == "refresh_token":
        if not refresh_token or username or password:
            raise InvalidRequest("refresh_token is needed, and nothing else.", param="refresh_token")
        return await auth.refresh(refresh_token, scopes)
    if not username or not password or refresh_token:
        raise InvalidRequest("username and password are needed, and nothing else.", param="username")
    return await auth.login(username, password, scopes, request.client.host if request.client else "")


@router.post("/auth/revoke", openapi_extra=OPEN, responses=problem_responses(422))
async def revoke_token(auth: AuthServiceDep, token: Annotated[str, Form(max_length=8_192)]) -> dict[str, str]:
    """Revoke a refresh token and its family (RFC 7009: an unknown token is answered alike)."""
    await auth.revoke(token)
    return {}


@router.post("/auth/logout", responses=problem_responses(401, 422), status_code=204)
async def logout(request: Request, _caller: CurrentUser, auth: AuthServiceDep) -> None:
    """End this log-in: the access token and every refresh token of its family, from the next request on."""
    await auth.logout(credential_of(request))


@router.get("/auth/me", responses=problem_responses(401))
async def me(caller: CurrentUser) -> Me:
    """The caller, as the credential says."""
    return Me(
        user_id=caller.user_id,
        username=caller.username,
        scopes=sorted(caller.scopes),
        credential=caller.kind,
        models=sorted(caller.allowed_models),
        agents=sorted(caller.allowed_agents),
    )


@router.post("/auth/keys", responses=problem_responses(401, 409, 422), status_code=201)
async def create_key(body: NewApiKey, caller: CurrentUser, keys: ApiKeyServiceDep, response: Response) -> CreatedApiKey:
    """Make an API key; it is shown this once."""
    response.headers.update(_NO_STORE)
    return await keys.create(caller.user_id, body, caller)


@router.get("/auth/keys", responses=problem_responses(401))
async def list_keys(caller: CurrentUser, keys: ApiKeyServiceDep) -> ApiKeyList:
    """The caller's keys, newest first."""
    return ApiKeyList(keys=await keys.list_keys(caller.user_id))


@router.delete("/auth/keys/{key_id}", responses=problem_responses(401, 404), status_code=204)
async def revoke_key(key_id: RecordId, caller: CurrentUser, keys: ApiKeyServiceDep) -> None:
    """Revoke one of the caller's keys."""
    await keys.revoke(caller.user_id, key_id)


@router.get("/.well-known/jwks.json", openapi_extra=OPEN, responses=problem_responses(404))
async def jwks(auth: AuthServiceDep, response: Response) -> dict[str, list[dict[str, Any]]]:
    """The public keys that verify our tokens, when they are signed with RS256 or ES256."""
    keys = auth.ring.jwks()
    if keys is None:
        raise NotFound("Tokens are signed with a secret (HS256); there are no public keys.")
    response.headers["cache-control"] = "public, max-age=300"
    return dict(keys)
