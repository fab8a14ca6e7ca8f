"""The API."""

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from sse_starlette import EventSourceResponse

from services.gateway import examples, exposition
from services.gateway.context import Context
from services.gateway.forms import FormFile
from services.gateway.health import Health, check_health
from services.gateway.problems import TaskNotFoundError, responses
from services.gateway.search import Found, search
from services.gateway.stats import Stats, read_stats
from services.gateway.stream import frames, resume_after
from shared.cleanup import clean_up
from shared.database.pool import ping
from shared.tasks import Task, TaskRow, TaskStatus, public_task

OWNER = "local"
"""Whose tasks these are, until there are API keys."""

MAX_PAGE = 1000

router = APIRouter()


async def context_of(request: Request) -> Context:
    """Return what the app opened at its start. A coroutine, for a plain function would be run in a thread."""
    context: Context = request.app.state.context
    return context


async def task_of(task_id: UUID, context: Annotated[Context, Depends(context_of)]) -> TaskRow:
    """Return the task that a path names.

    Raises
    ------
    TaskNotFoundError
        There is none.
    """
    task = await context.tasks.get(OWNER, task_id)
    if task is None:
        raise TaskNotFoundError(f"there is no task {task_id}; GET /tasks lists those there are")
    return task


InContext = Annotated[Context, Depends(context_of)]
OfTask = Annotated[TaskRow, Depends(task_of)]


class Accepted(BaseModel):
    """An upload is safe, and on its way."""

    task_id: UUID
    status: str = "processing"
    message: str = Field(examples=["x.pdf was accepted; follow it at /tasks/…/stream"])


class TaskPage(BaseModel):
    """Some of the tasks that match."""

    total: int = Field(description="how many match in all")
    tasks: list[Task]


class Deleted(BaseModel):
    """What a clean-up did."""

    deleted: int


@router.post(
    "/upload",
    status_code=HTTPStatus.ACCEPTED,
    tags=["tasks"],
    summary="Upload a PDF",
    responses=examples.answer(examples.ACCEPTED, 202)
    | responses(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
    openapi_extra=examples.UPLOAD_FORM,
)
async def upload(request: Request, response: Response, context: InContext) -> Accepted:
    """Take a PDF, as multipart form data in the field `file`, and process it in the background."""
    file = FormFile(request.headers.get("content-type"), request.stream())
    task = await context.uploads.accept(file, OWNER)
    response.headers["Location"] = f"/tasks/{task.task_id}"
    message = f"{task.filename} was accepted; follow it at /tasks/{task.task_id}/stream"
    return Accepted(task_id=task.task_id, message=message)


@router.get(
    "/tasks",
    tags=["tasks"],
    summary="List tasks",
    responses=examples.answer(examples.TASK_PAGE) | responses(HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def list_tasks(
    context: InContext,
    status: Annotated[TaskStatus | None, Query(description="only tasks in this status")] = None,
    skip: Annotated[int, Query(ge=0, le=10**9, description="how many to pass over")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="how many to return")] = 50,
) -> TaskPage:
    """Return tasks, newest first."""
    total, rows = await context.tasks.page(OWNER, status, skip=skip, limit=limit)
    return TaskPage(total=total, tasks=[public_task(row) for row in rows])


@router.get(
    "/tasks/{task_id}",
    tags=["tasks"],
    summary="Show a task",
    responses=examples.answer(examples.TASK) | responses(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def show_task(task: OfTask) -> Task:
    """Return a task with its progress by stage, its result or its error."""
    return public_task(task)


@router.get(
    "/tasks/{task_id}/stream",
    tags=["tasks"],
    summary="Follow a task live",
    response_class=EventSourceResponse,
    responses=responses(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY) | examples.STREAM,
)
async def stream_task(
    task: OfTask,
    context: InContext,
    last_event_id: Annotated[str | None, Header(description="id of the last event seen, sent on reconnection")] = None,
) -> Response:
    """Send the task's state on every change as server-sent events, then `event: complete`, then close.

    A client that has seen the end already gets 204, which tells an EventSource not to come back.
    """
    after = resume_after(task, last_event_id)
    if task.final and after == task.version:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return EventSourceResponse(
        frames(context.hub, context.tasks, OWNER, task.task_id, after),
        headers={"Cache-Control": "no-cache"},
        ping=context.settings.sse_heartbeat.total_seconds(),
        send_timeout=context.settings.sse_send_timeout.total_seconds(),
        sep="\n",
    )


@router.post(
    "/tasks/{task_id}/cancel",
    tags=["tasks"],
    summary="Cancel a task",
    responses=examples.answer(examples.CANCELED)
    | responses(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def cancel_task(task: OfTask, context: InContext) -> Task:
    """End a task at once. What waits of it is dropped, what runs is stopped, what was indexed of it is removed."""
    return public_task(await context.control.cancel(task))


@router.post(
    "/tasks/{task_id}/replay",
    status_code=HTTPStatus.ACCEPTED,
    tags=["tasks"],
    summary="Replay a failed task",
    responses=examples.answer(examples.REPLAYED, 202)
    | responses(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def replay_task(task: OfTask, context: InContext) -> Task:
    """Run the failed parts of a task again. What the others have done is kept, and not done again."""
    return public_task(await context.control.replay(task))


@router.get(
    "/search",
    tags=["search"],
    summary="Search what was indexed",
    responses=examples.answer(examples.FOUND)
    | responses(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def search_chunks(
    context: InContext,
    q: Annotated[str, Query(min_length=1, max_length=4000, description="what to look for, in plain words")],
    limit: Annotated[int, Query(ge=1, le=100, description="how many hits to return")] = 10,
) -> Found:
    """Return the pieces of text that mean most nearly what `q` says."""
    return await search(context.embedder, context.vectors, OWNER, q, limit)


@router.get(
    "/stats", tags=["operation"], summary="Show how the service does", responses=examples.answer(examples.STATS)
)
async def show_stats(context: InContext) -> Stats:
    """Return counts of tasks by status, and what every stage has done and has still to do."""
    return await read_stats(context.pool, context.tasks, context.watch, OWNER)


@router.post(
    "/cleanup",
    tags=["operation"],
    summary="Delete old tasks",
    responses=examples.answer(examples.DELETED) | responses(HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def delete_old_tasks(
    context: InContext,
    days: Annotated[int, Query(ge=0, le=36500, description="delete tasks that ended longer ago than this")] = 30,
) -> Deleted:
    """Delete tasks that are over, with their uploaded files. What they indexed stays searchable.

    A canceled task stays for three hours, in which its last traces are removed from the index.
    """
    return Deleted(deleted=await clean_up(context.pool, context.blobs, timedelta(days=days), owner=OWNER))


@router.get(
    "/health",
    tags=["operation"],
    summary="Check every component",
    responses=examples.answer(examples.HEALTH)
    | {HTTPStatus.SERVICE_UNAVAILABLE.value: {"model": Health, "description": "a component is not well"}},
)
async def show_health(context: InContext, response: Response) -> Health:
    """Return 200 where every component is well, 503 otherwise, with a line for each."""
    health = await check_health(context.pool, context.blobs, context.watch)
    if not health.ok:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return health


@router.get(
    "/metrics",
    tags=["operation"],
    summary="Expose metrics to Prometheus",
    response_class=Response,
    responses=examples.METRICS,
)
async def show_metrics(context: InContext) -> Response:
    """Return metrics in Prometheus's text format."""
    body = await exposition.expose(context.pool, context.tasks, context.watch)
    return Response(body, media_type=CONTENT_TYPE_LATEST)


@router.get("/livez", include_in_schema=False)
async def livez() -> str:
    """Tell that the process serves requests."""
    return "alive"


@router.get("/readyz", include_in_schema=False)
async def readyz(context: InContext) -> JSONResponse:
    """Tell whether uploads can be accepted now, which takes the database; Kafka may be away."""
    ready = await ping(context.pool)
    return JSONResponse("ready" if ready else "no database", HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)
