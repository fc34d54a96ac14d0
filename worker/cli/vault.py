"""`gullak secrets`: the keys that seal the secrets in the database."""

import typer

from metering.errors import ConfigurationError
from metering.vault import new_key as make_key
from metering.vault.rotate import rotate_secrets
from worker.cli.command import Group
from worker.cli.target import Target

app = Group()


@app.command("new-key")
def new_key() -> None:
    """Print a new key for GULLAK_SECRET_KEYS. Keep it apart from the database's backups."""
    typer.echo(make_key())


@app.add("rotate")
def rotate(target: Target) -> str:
    """Seal all secrets with the first key of GULLAK_SECRET_KEYS; then remove the other keys.

    Put a new key before the old one, restart all processes, then run this. It also seals secrets
    that were stored before there was a key. It may be interrupted, and run again.
    """
    if not target.settings.secret_key_list():
        raise ConfigurationError("GULLAK_SECRET_KEYS is not set: `gullak secrets new-key`")
    changed, total = rotate_secrets(target.transaction)
    return f"{changed} of {total} rows with secrets sealed anew"
