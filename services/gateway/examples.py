"""What OpenAPI shows: an example of every answer, and the calls that FastAPI cannot describe by types."""

import json
from typing import Any

from services.gateway.forms import FIELD

Responses = dict[int | str, dict[str, Any]]

_ID = "3fcd5b07-f803-4f25-9a95-bb994b26e7fa"
_DOCUMENT = "efbd78be-828e-5a6d-9e0c-3f0b6d08f55a"
_START, _END = "2026-03-01T12:00:00Z", "2026-03-01T12:00:02Z"
_DONE = {"started": _START, "finished": _END, "done": 24, "total": 24}
_RESULT = {
    "file": "handbook.pdf",
    "document_id": _DOCUMENT,
    "pages": 500,
    "pages_without_text": 2,
    "content_length": 1_013_466,
    "chunks": 1499,
    "model": "wordllama-l2-supercat-256",
    "embedding_dim": 256,
    "tokens": 230_912,
    "warnings": ["no text on 2 of 500 pages"],
}

ACCEPTED = {
    "task_id": _ID,
    "status": "processing",
    "message": f"handbook.pdf was accepted; follow it at /tasks/{_ID}/stream",
}
TASK = {
    "task_id": _ID,
    "task_type": "document_process",
    "status": "completed",
    "progress": 100,
    "message": "completed: 500 pages, 1499 chunks",
    "params": {"filename": "handbook.pdf", "size": 451_203, "sha256": "9f" * 32},
    "result": _RESULT,
    "error": None,
    "retry_count": 0,
    "next_retry_at": None,
    "metadata": {"Title": "Handbook", "Author": "Jane Doe"},
    "stages": {"parse": {**_DONE, "done": 8, "total": 8}, "embed": _DONE, "index": _DONE},
    "created_at": _START,
    "updated_at": _END,
    "started_at": _START,
    "completed_at": _END,
    "version": 31,
}
CANCELED = {**TASK, "status": "canceled", "progress": 54, "message": "canceled", "result": None}
REPLAYED = {
    **TASK,
    "status": "running",
    "progress": 97,
    "message": "parsed 500 of 500 pages, embedded 24 and indexed 23 of 24 parts",
    "result": None,
    "completed_at": None,
}
TASK_PAGE = {"total": 1, "tasks": [TASK]}
FOUND = {
    "hits": [
        {
            "score": 0.61,
            "text": "Rye loaves improve with steam and high heat, so that the crust turns crisp.",
            "filename": "handbook.pdf",
            "first_page": 39,
            "last_page": 39,
            "document_id": _DOCUMENT,
        }
    ]
}
_STAGE = {"waiting": 0, "members": 1, "done": 24, "rate": 24, "p50_seconds": 0.03, "p95_seconds": 0.09}
STATS = {
    "tasks": {"pending": 0, "running": 0, "completed": 1, "failed": 0, "canceled": 0},
    "stages": {"parse": _STAGE, "embed": _STAGE, "index": _STAGE},
}
DELETED = {"deleted": 12}
HEALTH = {
    "ok": True,
    "components": [
        {"name": "database", "ok": True, "detail": "answers"},
        {"name": "parse", "ok": True, "detail": "1 consumers, 0 records waiting"},
    ],
}

UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary", "description": "the PDF"}},
                }
            }
        },
    }
}


def answer(example: object, status: int = 200) -> Responses:
    """Show an example of a call's answer."""
    return {status: {"content": {"application/json": {"example": example}}}}


def _event(data: object, *fields: str) -> str:
    return "\n".join([*fields, f"data: {json.dumps(data)}", "", ""])


_RUNNING = {"task_id": _ID, "version": 12, "status": "running", "progress": 54, "message": "…", "stages": {}}
_COMPLETE = {"task_id": _ID, "version": 31, "status": "completed", "result": _RESULT, "error": None}

STREAM: Responses = {
    200: {
        "description": "server-sent events",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": _event(_RUNNING, "id: 12") + _event(_COMPLETE, "id: 31", "event: complete"),
            }
        },
    },
    204: {"description": "the client has seen the end already"},
}

METRICS: Responses = {
    200: {
        "description": "metrics",
        "content": {"text/plain": {"schema": {"type": "string"}, "example": "task_running 3.0\n"}},
    }
}
