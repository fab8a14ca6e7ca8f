"""The gateway: the one door to the outside.

In: uploads, wishes and questions over HTTP, `task.updates`. Out: blobs, rows in `tasks`, `documents.submitted`,
`task.control`, event streams.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

from fastapi import FastAPI

from services.gateway import problems
from services.gateway.config import GatewaySettings
from services.gateway.context import Context
from services.gateway.handlers import router
from shared.logs import configure_logging

DESCRIPTION = "PDFs in, a searchable vector index out, and every task's progress live."


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """Build the gateway, configured from the environment unless `settings` are given."""
    settings = settings or GatewaySettings()
    configure_logging(settings, "gateway")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, timedelta]]:
        async with Context.open(settings) as context:
            app.state.context = context
            yield {"send_timeout": settings.sse_send_timeout}

    app = FastAPI(title="Paperlane", description=DESCRIPTION, version="0.1.0", lifespan=lifespan)
    problems.install(app)
    app.include_router(router)
    return app
