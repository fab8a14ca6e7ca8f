"""Structured logs: JSON lines for machines, readable text on a terminal."""

import logging
import sys

import structlog

from shared.settings import LogSettings

NOISY = ("aiokafka", "faststream", "httpx", "httpcore", "uvicorn.access", "sse_starlette", "pypdf", "alembic")
"""Libraries whose chatter below a warning helps nobody in operation."""

OWN_HANDLERS = ("uvicorn", "uvicorn.error")
"""Libraries that write in a format of their own unless they are made to pass their lines on."""


def configure_logging(settings: LogSettings, service: str) -> None:
    """Send the logs of this process, those of its libraries too, to stderr in one format.

    Parameters
    ----------
    service
        Name that every line carries.
    """
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared_steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared_steps,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    last_steps: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        *([] if as_text else [structlog.processors.format_exc_info]),
        structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer(),
    ]
    handler = logging.StreamHandler()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared_steps, processors=last_steps))
    logging.basicConfig(handlers=[handler], level=settings.log_level, force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in OWN_HANDLERS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    structlog.contextvars.bind_contextvars(service=service)
