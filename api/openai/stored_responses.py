"""Responses that are stored: found again, followed, cancelled, deleted."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal, get_args

import orjson
from fastapi import APIRouter, Depends, Path, Query
from starlette.responses import Response

from api.dependencies import AllServices, Services
from api.errors import openai_responses
from api.openai.response_items import input_items, output_items
from api.openai.schemas import (
    DeletedResponse,
    ItemList,
)
from api.streaming.openai_chunks import ToolView
from api.streaming.openai_responses import ResponseStream
from api.streaming.response import EventStreamResponse
from api.streaming.sse import HEARTBEAT
from core.dependencies import require
from domain.auth import Principal, Scope
from domain.enums import RunStatus
from domain.errors import InvalidRequest
from services.direct_service import AGENT as DIRECT
from services.response_service import StoredResponse

router = APIRouter(prefix="/v1/responses", tags=["openai"])

Caller = Annotated[Principal, Depends(require(Scope.COMPLETION))]
ResponseKey = Annotated[str, Path(max_length=100, examples=["resp_019a7f0e4b0c7d3e9f1a2b3c4d5e6f70"])]
_ONE = openai_responses(400, 401, 403, 404)
_CHANGED = openai_responses(400, 401, 403, 404, 409)


async def followed(services: Services, run_id: str, built: ResponseStream) -> AsyncGenerator[bytes]:
    """A background run as it goes on; leaving it does not stop it."""
    yield built.begin(queued=True)
    heartbeat = services.settings.server.heartbeat
    async with aclosing(services.events.follow(run_id, 0, heartbeat)) as followed:
        async for told in followed:
            if isinstance(told, tuple):
                continue  # trimmed away: the end is told all the same
            if not told:
                yield HEARTBEAT
            elif frames := built.started() + built.envelopes(told):
                yield frames


@router.get("/{response_id}", responses=_ONE, response_model=None)
async def get_response(
    response_id: ResponseKey,
    caller: Caller,
    services: AllServices,
    stream: Annotated[bool, Query(description="of one in the background: the events that build it")] = False,
    starting_after: Annotated[int | None, Query(ge=0, le=2**31, description="leave out events up to this")] = None,
) -> Response:
    """One response."""
    found = await services.responses.get(response_id, caller)
    if not stream:
        return _json(_stored(found))
    if not found.run.background:
        raise InvalidRequest("Only responses in the background can be streamed again.", param="stream")
    skip = -1 if starting_after is None else starting_after
    built = ResponseStream(found.run.id, _echo_of(found), tools=_view_of(found), skip=skip)
    return EventStreamResponse(followed(services, found.run.id, built))


@router.delete("/{response_id}", responses=_CHANGED)
async def delete_response(response_id: ResponseKey, caller: Caller, services: AllServices) -> DeletedResponse:
    """Forget a response; its conversation goes with it when there was nothing else in it."""
    await services.responses.delete(response_id, caller)
    return DeletedResponse(id=response_id)


@router.post("/{response_id}/cancel", responses=_CHANGED, response_model=None)
async def cancel_response(response_id: ResponseKey, caller: Caller, services: AllServices) -> Response:
    """Stop a response in the background."""
    found = await services.responses.get(response_id, caller)
    if not found.run.background or services.background is None:
        raise InvalidRequest("Only responses in the background can be cancelled.", code="not_in_background")
    await services.background.runs.cancel(found.run.id, caller)
    return _json(_stored(await services.responses.get(response_id, caller)))


@router.get("/{response_id}/input_items", responses=_ONE)
async def list_input_items(
    response_id: ResponseKey,
    caller: Caller,
    services: AllServices,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=200)] = None,
) -> ItemList:
    """What a response was asked."""
    found = await services.responses.get(response_id, caller)
    items = input_items(found.asked)
    if order == "desc":
        items.reverse()
    places = {item["id"]: place for place, item in enumerate(items)}
    if after is not None:
        if after not in places:
            raise InvalidRequest("There is no such item.", param="after")
        items = items[places[after] + 1 :]
    shown = items[:limit]
    return ItemList(
        data=shown,
        first_id=shown[0]["id"] if shown else None,
        last_id=shown[-1]["id"] if shown else None,
        has_more=len(items) > limit,
    )


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _echo_of(found: StoredResponse) -> dict[str, Any]:
    run = found.run
    shown = run.model or ""
    named = str(found.echo.get("model") or "")
    if named.startswith("agent/"):
        shown = f"{named.partition('@')[0]}@{shown}"
    return {**found.echo, "model": shown}


def _view_of(found: StoredResponse) -> ToolView:
    return next((view for view in get_args(ToolView) if view == found.view), "hidden")


def _stored(found: StoredResponse) -> dict[str, Any]:
    """A response as it stands in the record: what its events have built.

    Those of a model that somebody waited for do not tell its calls; its message does.
    """
    run = found.run
    built = ResponseStream(run.id, _echo_of(found), tools=_view_of(found))
    built.begin(queued=run.background)
    if run.status is not RunStatus.QUEUED or found.told:
        built.started()
    built.envelopes(found.told)
    body = built.response
    trimmed = bool(found.told) and found.told[0].seq != 1
    if trimmed or (run.agent == DIRECT and not run.background and run.status is RunStatus.COMPLETED):
        body["output"] = output_items(found.said, calls=run.agent == DIRECT)
    elif run.agent == DIRECT and body["status"] != "completed":
        cut = {"message", "function_call"}
        body["output"] = [{**item, "status": "incomplete"} if item["type"] in cut else item for item in body["output"]]
    return body
