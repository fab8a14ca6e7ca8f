"""Runs the work of a command, and tells in one line why it could not be done."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from cli.client import ApiError
from cli.printable import printable
from shared.errors import DependencyUnavailableError

T = TypeVar("T")


class CommandError(Exception):
    """A command cannot do what it was asked for; the text says why."""


def run(work: Coroutine[None, None, T]) -> T:
    """Return what `work` returns, or end the command with exit status 1 and the reason."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that does not answer is told once, by us
    try:
        return asyncio.run(work)
    except (ApiError, CommandError, DependencyUnavailableError) as error:
        complain(str(error))
    except ValidationError as error:
        complain("; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()))
    raise typer.Exit(1)


def complain(reason: str) -> None:
    """Tell on the standard error what went wrong."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("paperlane: ", "bold red"), printable(reason)))
