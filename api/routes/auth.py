"""Log in, stay logged in, log out; API keys; the public keys of our tokens."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Request, Response

from api.dependencies import ApiKeyServiceDep, AuthServiceDep
from api.errors import problem_responses
from api.openapi import OPEN
from core.dependencies import CurrentUser, credential_of
from domain.errors import NotFound
from domain.users import ApiKeyList, CreatedApiKey, Me, NewApiKey, RevokeRequest, TokenPair, TokenRequest

router = APIRouter(tags=["auth"])

RecordId = Annotated[str, Path(max_length=64)]
_NO_STORE = {"cache-control": "no-store"}


@router.post("/auth/token", openapi_extra=OPEN, responses=problem_responses(401, 422, 429))
async def issue_token(
    form: Annotated[TokenRequest, Form()], request: Request, response: Response, auth: AuthServiceDep
) -> TokenPair:
    """Tokens for a password, or for a refresh token (which is spent by this). `scope` narrows what they may do."""
    response.headers.update(_NO_STORE)
    scopes = form.scope.split() if form.scope else None
    if form.grant_type == "refresh_token":
        return await auth.refresh(form.refresh_token or "", scopes)
    address = request.client.host if request.client else ""
    return await auth.login(form.username or "", form.password or "", scopes, address)


@router.post("/auth/revoke", openapi_extra=OPEN, responses=problem_responses(422))
async def revoke_token(form: Annotated[RevokeRequest, Form()], auth: AuthServiceDep) -> dict[str, str]:
    """End the log-in that a refresh or an access token belongs to (RFC 7009: an unknown token is answered alike)."""
    await auth.revoke(form.token)
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
