"""Sessions: the conversations of the caller."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from api.dependencies import SessionServiceDep
from api.errors import problem_responses
from api.paging import METADATA_FILTER, After, Cursor, Limit, metadata_filter
from core.dependencies import require
from domain.agents import AGENT_ID_PATTERN, SESSION_ID_PATTERN
from domain.auth import Principal, Scope
from domain.enums import SessionKind
from domain.sessions import (
    Appended,
    AppendMessages,
    BranchPoint,
    NewSession,
    RawMessageList,
    SessionChange,
    SessionDetail,
    SessionExport,
    SessionInfo,
    SessionList,
    SessionUsage,
    SimpleMessageList,
)
from services.session_service import SessionFilter

router = APIRouter(prefix="/api/sessions", tags=["sessions"])

Caller = Annotated[Principal, Depends(require(Scope.SESSIONS))]
SessionId = Annotated[str, Path(pattern=SESSION_ID_PATTERN)]
_READ = problem_responses(401, 403, 404, 422)
_WRITE = problem_responses(401, 403, 404, 409, 413, 422)


@router.post("", responses=_WRITE, status_code=201)
async def create_session(body: NewSession, caller: Caller, sessions: SessionServiceDep) -> SessionInfo:
    """Make an empty session; `POST /completion` makes one by itself when no `session_id` is given."""
    return await sessions.create(body, caller)


@router.get("", responses=problem_responses(401, 403, 422), openapi_extra=METADATA_FILTER)
async def list_sessions(
    request: Request,
    caller: Caller,
    sessions: SessionServiceDep,
    agent: Annotated[str | None, Query(pattern=AGENT_ID_PATTERN)] = None,
    kind: SessionKind | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> SessionList:
    """The caller's sessions, the latest used first."""
    wanted = SessionFilter(agent=agent, kind=kind, metadata=metadata_filter(request))
    return await sessions.recent(caller, wanted, limit=limit, cursor=cursor)


@router.get("/{session_id}", responses=_READ)
async def get_session(session_id: SessionId, caller: Caller, sessions: SessionServiceDep) -> SessionDetail:
    """One session: its usage and the first hundred lines of its conversation."""
    return await sessions.get_session(session_id, caller)


@router.patch("/{session_id}", responses=_WRITE)
async def change_session(
    session_id: SessionId, body: SessionChange, caller: Caller, sessions: SessionServiceDep
) -> SessionInfo:
    """Rename it, replace its metadata or its state."""
    return await sessions.change(session_id, body, caller)


@router.delete("/{session_id}", responses=_WRITE, status_code=204)
async def delete_session(session_id: SessionId, caller: Caller, sessions: SessionServiceDep) -> None:
    """Delete it for good: messages, runs, events, checkpoints. What it cost stays in the statistics of usage."""
    await sessions.delete(session_id, caller)


@router.get("/{session_id}/messages", responses=_READ)
async def get_messages(
    session_id: SessionId, caller: Caller, sessions: SessionServiceDep, after: After = -1, limit: Limit = 100
) -> SimpleMessageList:
    """The conversation for reading, in pages."""
    return await sessions.get_messages(session_id, caller, after=after, limit=limit)


@router.get("/{session_id}/messages/raw", responses=_READ)
async def get_raw_messages(
    session_id: SessionId, caller: Caller, sessions: SessionServiceDep, after: After = -1, limit: Limit = 100
) -> RawMessageList:
    """The conversation complete, as the libraries wrote it, in pages."""
    return await sessions.get_raw_messages(session_id, caller, after=after, limit=limit)


@router.post("/{session_id}/messages", responses=_WRITE, status_code=201)
async def append_messages(
    session_id: SessionId, body: AppendMessages, caller: Caller, sessions: SessionServiceDep
) -> Appended:
    """Append messages that were said elsewhere: ours, LangChain's, or pydantic-ai's with what they cost."""
    return await sessions.append_to_session(session_id, body, caller)


@router.get("/{session_id}/usage", responses=_READ)
async def get_usage(session_id: SessionId, caller: Caller, sessions: SessionServiceDep) -> SessionUsage:
    """Tokens and cost of the session so far."""
    return await sessions.usage(session_id, caller)


@router.post("/{session_id}/branch", responses=_WRITE, status_code=201)
async def branch_session(
    session_id: SessionId, body: BranchPoint, caller: Caller, sessions: SessionServiceDep
) -> SessionInfo:
    """A new session with everything before one message: to edit that message, or to ask again."""
    return await sessions.branch(session_id, body, caller)


@router.get(
    "/{session_id}/export",
    response_model=SessionExport,
    responses={
        **_READ,
        200: {"content": {"text/markdown": {"schema": {"type": "string"}}}, "description": "The whole session"},
    },
)
async def export_session(
    session_id: SessionId,
    caller: Caller,
    sessions: SessionServiceDep,
    format: Annotated[Literal["json", "markdown"], Query()] = "json",
) -> Response:
    """Everything of a session: JSON for machines, Markdown for people."""
    export = await sessions.export(session_id, caller)
    if format == "markdown":
        return _file(export.markdown(), "text/markdown; charset=utf-8", f"{session_id}.md")
    return _file(export.model_dump_json(), "application/json", f"{session_id}.json")


def _file(content: str, media_type: str, name: str) -> Response:
    return Response(content, media_type=media_type, headers={"content-disposition": f'attachment; filename="{name}"'})
