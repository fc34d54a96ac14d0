"""`gullak secrets`: the keys that seal the secrets in the database."""

import typer

from metering.errors import ConfigurationError
from metering.vault import new_key as make_key
from metering.vault.rotate import rotate_secrets
from worker.cli.target import DataDir, open_target

app = typer.Typer(help="Keys that seal the secrets in the database.", no_args_is_help=True)


@app.command("new-key")
def new_key() -> None:
    """Print a new key for GULLAK_SECRET_KEYS. Keep it apart from the database's backups."""
    typer.echo(make_key())


@app.command()
def rotate(data_dir: DataDir = None) -> None:
    """Seal all secrets with the first key of GULLAK_SECRET_KEYS; the other keys may go after that.

    Put a new key before the old one, restart all processes, then run this. What was stored before
    there was a key is sealed as well. It may be stopped, and run again.
    """
    with open_target(data_dir) as target:
        if not target.settings.secret_key_list():
            raise ConfigurationError("GULLAK_SECRET_KEYS is not set: `gullak secrets new-key`")
        changed, total = rotate_secrets(target.transaction)
    typer.echo(f"{changed} of {total} rows with secrets sealed anew")
