"""Users, for admins."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from api.dependencies import UserServiceDep
from api.errors import problem_responses
from core.dependencies import require
from domain.auth import Scope
from domain.users import NewUser, UserChange, UserInfo, UserList

router = APIRouter(prefix="/users", tags=["users"], dependencies=[Depends(require(Scope.ADMIN))])

RecordId = Annotated[str, Path(max_length=64)]


@router.post("", responses=problem_responses(401, 403, 409, 422), status_code=201)
async def create_user(body: NewUser, users: UserServiceDep) -> UserInfo:
    """Make a user."""
    return await users.create(body)


@router.get("", responses=problem_responses(401, 403))
async def list_users(users: UserServiceDep) -> UserList:
    """Every user, by name."""
    return UserList(users=await users.list_users())


@router.get("/{user_id}", responses=problem_responses(401, 403, 404))
async def get_user(user_id: RecordId, users: UserServiceDep) -> UserInfo:
    """One user."""
    return await users.get(user_id)


@router.patch("/{user_id}", responses=problem_responses(401, 403, 404, 409, 422))
async def change_user(user_id: RecordId, body: UserChange, users: UserServiceDep) -> UserInfo:
    """Change password, scopes or the disabled flag; the user's tokens end at once."""
    return await users.change(user_id, body)


@router.delete("/{user_id}", responses=problem_responses(401, 403, 404, 409), status_code=204)
async def delete_user(user_id: RecordId, users: UserServiceDep) -> None:
    """Remove a user and every credential of theirs."""
    await users.delete(user_id)
