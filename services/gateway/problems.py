"""Errors as the API shows them: RFC 9457 problem documents, each with a stable `code`."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shared.errors import NotAPdfError, PaperlaneError, TransientError

MEDIA_TYPE = "application/problem+json"

RETRY_AFTER = {"Retry-After": "5"}
"""Seconds after which an unavailable part is usually back: a restart takes less."""

logger = structlog.stdlib.get_logger()


class InvalidField(BaseModel):
    """A parameter that is not what it should be."""

    name: str
    message: str


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="what is wrong and what would be right")
    code: str = Field(description="stable, for programs")
    errors: list[InvalidField] = Field(default=[], description="which parameters are wrong, if any are")


class ApiError(PaperlaneError):
    """An error with an HTTP status of its own."""

    status = HTTPStatus.BAD_REQUEST
    code = "bad_request"


class MalformedUploadError(ApiError):
    """The request body is not what its headers promise."""

    code = "upload_malformed"


class UploadTooLargeError(ApiError):
    """The file is larger than MAX_UPLOAD_BYTES."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "upload_too_large"


class TaskNotFoundError(ApiError):
    """There is no such task."""

    status = HTTPStatus.NOT_FOUND
    code = "task_not_found"


class TaskConflictError(ApiError):
    """The task's status does not allow it."""

    status = HTTPStatus.CONFLICT
    code = "task_conflict"


class FileMissingError(ApiError):
    """The form has no file in its field `file`."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "invalid_request"


STATUS_OF: dict[type[PaperlaneError], HTTPStatus] = {
    NotAPdfError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    TransientError: HTTPStatus.SERVICE_UNAVAILABLE,
}


def problem(
    status: int,
    code: str,
    detail: str,
    errors: Sequence[InvalidField] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Make the response for a problem."""
    document = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, code=code, errors=list(errors))
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {**RETRY_AFTER, **(headers or {})}
    return JSONResponse(document.model_dump(), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def responses(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Describe the problems of a call for OpenAPI."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {status.value: {"description": status.phrase, "content": {MEDIA_TYPE: schema}} for status in statuses}


def install(app: FastAPI) -> None:
    """Answer every error of the app as a problem document, and describe it in OpenAPI."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(Problem, "serialization")]
        _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= schemas["$defs"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents
    app.add_exception_handler(PaperlaneError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unforeseen)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ApiError):
        missing = [InvalidField(name="file", message=str(error))] if isinstance(error, FileMissingError) else []
        return problem(error.status, error.code, str(error), missing)
    code = error.code if isinstance(error, PaperlaneError) else PaperlaneError.code
    for kind in type(error).__mro__:
        if kind in STATUS_OF:
            return problem(STATUS_OF[kind], code, str(error))
    logger.error("request failed", exc_info=error)
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, code, str(error))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    fields = [InvalidField(name=str(item["loc"][-1]), message=item["msg"]) for item in found]
    detail = "; ".join(f"{field.name}: {field.message}" for field in fields)
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", detail, fields)


async def _http(_: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    detail = str(error.detail) if isinstance(error, HTTPException) else str(error)
    headers = error.headers if isinstance(error, HTTPException) else None  # such as Allow, which a 405 must have
    return problem(status, HTTPStatus(status).name.lower(), detail, headers=headers)


async def _gone(request: Request, _: Exception) -> JSONResponse:
    logger.info("client went away", method=request.method, path=request.url.path)
    detail = "the connection was closed before the request had ended; send it again"
    return problem(MalformedUploadError.status, MalformedUploadError.code, detail)  # which nobody reads any more


async def _unforeseen(_: Request, error: Exception) -> JSONResponse:
    logger.error("request failed", exc_info=error)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        PaperlaneError.code,
        "something went wrong here; the log of the gateway says what",
    )
