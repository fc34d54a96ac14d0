"""The command line: `gullak COMMAND`. A further command is one line here."""

import sys

import typer
from pydantic import ValidationError

from metering.errors import GullakError
from worker.commands import add_commands
from worker.demo.command import demo
from worker.log import log_to_stderr, setup_logging
from worker.migrate import migrate_database
from worker.settings import settings
from worker.up import up

app = typer.Typer(
    name="gullak",
    help="Prepaid credit for metered APIs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables: secrets among them
)


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
        # Names and reasons only: the refused value may be a secret.
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        _fail("; ".join(problems))


def _fail(message: str) -> None:
    typer.echo(f"gullak: {message}", err=True)
    sys.exit(1)
