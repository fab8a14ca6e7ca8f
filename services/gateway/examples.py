"""What OpenAPI shows of the calls that FastAPI cannot describe by types: the upload's form and the event stream."""

from typing import Any

from services.gateway.forms import FIELD

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

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "server-sent events",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": (
                    'id: 3\ndata: {"task_id":"0b1c…","version":3,"status":"running","progress":41,'
                    '"message":"parsed 500 of 500 pages, embedded 6 and indexed 2 of 24 parts","stages":{}}\n\n'
                    'id: 9\nevent: complete\ndata: {"task_id":"0b1c…","version":9,"status":"completed",'
                    '"result":{"file":"x.pdf","pages":500},"error":null}\n\n'
                ),
            }
        },
    },
    204: {"description": "the client has seen the end already"},
}
