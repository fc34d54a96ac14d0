"""The command line: `gullak COMMAND`. A further command is one line in `commands.py`."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from worker.cli.commands import Commands
from worker.cli.shared import AsJson, Business, DataDir

app = typer.Typer(
    name="gullak",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables: secrets among them
)


def _print_version(is_wanted: bool) -> None:  # the form that typer calls
    if is_wanted:
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
    _business: Business = None,
    _as_json: AsJson = False,
    _data_dir: DataDir = None,
) -> None:
    """Prepaid credit for metered APIs."""


def main() -> None:
    """Run the command; what the user can put right is one line on stderr and exit code 1."""
    try:
        app()
    except Exception as error:
        # Imported late: `gullak --help` needs none of what this imports.
        from worker.cli.problem import problem_of  # noqa: PLC0415

        problem = problem_of(error)
        if problem is None:
            raise
        typer.echo(f"gullak: {problem}", err=True)
        sys.exit(1)
