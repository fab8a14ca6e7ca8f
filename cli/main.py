"""The `paperlane` command."""

import typer

from cli.migrate import migrate
from cli.up import up

app = typer.Typer(
    help="PDFs in, a searchable vector index out.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they hold passwords
)
app.command()(up)
app.command()(migrate)


if __name__ == "__main__":
    app()
