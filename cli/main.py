"""The `paperlane` command."""

import typer

from cli import dlq
from cli.control import cancel, replay
from cli.demo import demo
from cli.documents import search, tasks, upload, watch
from cli.migrate import migrate
from cli.up import up

app = typer.Typer(
    help="PDFs in, a searchable vector index out.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they hold passwords
)
for command in (up, demo, upload, watch, search, tasks, cancel, replay, migrate):
    app.command()(command)
app.add_typer(dlq.app, name="dlq")


if __name__ == "__main__":
    app()
