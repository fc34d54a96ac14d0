"""`gullak secrets`: the keys that seal the secrets in the database."""

import typer

from metering.errors import ConfigurationError
from metering.vault import new_key as make_key
from metering.vault.rotate import rotate_secrets
from worker.cli.command import Group
from worker.cli.page import Sentence
from worker.cli.shared import AsJson
from worker.cli.show import print_json
from worker.cli.target import Target

app = Group()


@app.command("new-key")
def new_key(*, as_json: AsJson = False) -> None:
    """Print a new key for GULLAK_SECRET_KEYS. Keep it apart from the database's backups."""
    key = make_key()
    if as_json:
        print_json({"key": key})
    else:
        typer.echo(key)


@app.add("rotate")
def rotate(target: Target) -> Sentence:
    """Seal all secrets with the first key of GULLAK_SECRET_KEYS; then remove the other keys.

    Put a new key before the old one, restart all processes, then run this. It also seals secrets
    that were stored before there was a key. It may be interrupted, and run again.
    """
    if not target.settings.secret_key_list():
        raise ConfigurationError("GULLAK_SECRET_KEYS is not set: `gullak secrets new-key`")
    changed, total = rotate_secrets(target.transaction)
    text = f"{changed} of {total} rows with secrets sealed anew"
    return Sentence({"changed": changed, "rows": total}, text)
