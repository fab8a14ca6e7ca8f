import asyncio
import json
from collections.abc import AsyncIterator, Iterator, MutableMapping
from http import HTTPStatus
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Query, Request
from structlog.testing import capture_logs

from services.gateway import problems
from services.gateway.problems import (
    FileMissingError,
    MalformedUploadError,
    TaskNotFoundError,
    UploadTooLargeError,
)
from shared.errors import (
    DependencyUnavailableError,
    EmbeddingRejectedError,
    NotAPdfError,
    PaperlaneError,
    RateLimitedError,
    TransientError,
)
from tests.support.builders import patience

ERRORS: dict[str, Exception] = {
    "malformed": MalformedUploadError("send a form"),
    "large": UploadTooLargeError("too large"),
    "no-task": TaskNotFoundError("there is none"),
    "no-file": FileMissingError("no file in its field 'file'"),
    "no-pdf": NotAPdfError("not a PDF"),
    "away": DependencyUnavailableError("the database does not answer"),
    "busy": RateLimitedError("slow down"),
    "passing": TransientError("later"),
    "refused": EmbeddingRejectedError("a bad key"),
    "ours": PaperlaneError("a bug of ours"),
    "unforeseen": RuntimeError("the password is swordfish"),
    "teapot": HTTPException(418, "short and stout", headers={"X-Kind": "teapot"}),
}


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    problems.install(app)

    @app.get("/raise/{name}")
    async def fail(name: str, limit: Annotated[int, Query(ge=1)] = 1) -> int:
        if name in ERRORS:
            raise ERRORS[name]
        return limit

    @app.post("/read")
    async def read(request: Request) -> int:
        return len([piece async for piece in request.stream()])

    return app


@pytest.fixture
async def api(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("malformed", 400, "upload_malformed"),
        ("large", 413, "upload_too_large"),
        ("no-task", 404, "task_not_found"),
        ("no-file", 422, "invalid_request"),
        ("no-pdf", 415, "not_a_pdf"),
        ("away", 503, "dependency_unavailable"),
        ("busy", 503, "rate_limited"),
        ("passing", 503, "temporarily_unavailable"),
        ("refused", 500, "embedding_rejected"),
        ("ours", 500, "internal_error"),
        ("teapot", 418, "im_a_teapot"),
    ],
)
async def test_every_error_is_a_problem_document_with_a_stable_code(
    api: httpx.AsyncClient, name: str, status: int, code: str
) -> None:
    answer = await api.get(f"/raise/{name}")
    document = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (document["status"], document["code"], document["type"]) == (status, code, "about:blank")
    error = ERRORS[name]
    assert document["detail"] == (error.detail if isinstance(error, HTTPException) else str(error))
    assert document["title"]
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_an_error_that_nobody_foresaw_is_logged_and_told_to_nobody(api: httpx.AsyncClient) -> None:
    with capture_logs() as lines:
        answer = await api.get("/raise/unforeseen")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert "swordfish" not in answer.text
    assert [line["exc_info"] for line in lines] == [ERRORS["unforeseen"]]


async def test_a_parameter_that_is_wrong_is_named(api: httpx.AsyncClient) -> None:
    answer = await api.get("/raise/nothing", params={"limit": 0})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    [field] = answer.json()["errors"]
    assert field == {"name": "limit", "message": "Input should be greater than or equal to 1"}
    assert answer.json()["detail"] == "limit: Input should be greater than or equal to 1"


async def test_a_missing_file_is_named_as_the_field_that_is_wrong(api: httpx.AsyncClient) -> None:
    [field] = (await api.get("/raise/no-file")).json()["errors"]
    assert field == {"name": "file", "message": "no file in its field 'file'"}


async def test_an_unknown_path_is_a_problem_document(api: httpx.AsyncClient) -> None:
    answer = await api.get("/nowhere")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_wrong_method_is_told_which_one_is_right(api: httpx.AsyncClient) -> None:
    answer = await api.delete("/raise/x")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


async def test_headers_of_an_error_are_kept(api: httpx.AsyncClient) -> None:
    assert (await api.get("/raise/teapot")).headers["x-kind"] == "teapot"


async def test_a_client_that_went_away_is_no_error_of_ours(app: FastAPI) -> None:
    arriving: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> MutableMapping[str, Any]:
        return next(arriving)

    async def send(_: MutableMapping[str, Any]) -> None:
        await asyncio.sleep(0)  # nobody listens any more

    scope = {"type": "http", "method": "POST", "path": "/read", "headers": [], "query_string": b""}
    with capture_logs() as lines:
        async with patience():
            await app(scope, receive, send)
    assert not [line for line in lines if line["log_level"] in {"warning", "error"}]


def test_openapi_describes_the_problems_of_a_call() -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/x", responses=problems.responses(HTTPStatus.NOT_FOUND))
    async def x() -> problems.InvalidField:
        return problems.InvalidField(name="x", message="y")

    document = json.loads(json.dumps(app.openapi()))
    described = document["paths"]["/x"]["get"]["responses"]["404"]
    assert described["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert "code" in document["components"]["schemas"]["Problem"]["properties"]
