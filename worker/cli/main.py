"""The command line: `gullak COMMAND`. A further command is one line here."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from metering.errors import GullakError
from worker.cli.commands import add_commands
from worker.demo.command import demo
from worker.local.up import up
from worker.log import log_to_stderr, setup_logging
from worker.migrate import migrate_database
from worker.settings import problems_of, settings

app = typer.Typer(
    name="gullak",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables: secrets among them
)


def _print_version(asked: bool) -> None:  # noqa: FBT001  # the form that typer calls
    if asked:
        typer.echo(f"gullak {version('gullak')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Prepaid credit for metered APIs."""


@app.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL to the newest schema."""
    setup_logging(settings())
    migrate_database(settings())


app.command()(up)
app.command()(demo)
add_commands(app)


def main() -> None:
    """Run the command; what the user can put right is one line on stderr and exit code 1."""
    log_to_stderr()
    try:
        app()
    except GullakError as error:
        _fail(error.message)
    except ValidationError as error:
        _fail(problems_of(error))
    except SettingsError as error:
        _fail(f"{error}: it is not JSON")


def _fail(message: str) -> None:
    typer.echo(f"gullak: {message}", err=True)
    sys.exit(1)
