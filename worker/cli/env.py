"""`gullak env`: the variables with which a program or a shell uses a running `gullak up`."""

import shlex
from pathlib import Path

import typer

from metering.access.keys import authenticate
from metering.errors import ConfigurationError
from worker.cli.shared import AsJson, DataDir
from worker.cli.show import print_json
from worker.cli.target import START_HINT, open_target
from worker.local.files import API_KEY_FILE, API_URL_FILE, DEFAULT_DATA_DIR


def env(*, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Print the variables of a running stack, the API key among them.

    For a shell: `eval "$(gullak env)"`. GULLAK_URL and GULLAK_KEY are for HTTP, REDIS_URL and
    GULLAK_BUSINESS for a Meter, DATABASE_URL and GULLAK_SECRET_KEYS for `gullak migrate`.
    """
    folder = DEFAULT_DATA_DIR if data_dir is None else data_dir
    key = _read(folder / API_KEY_FILE)
    # Never the servers of the environment: the key is of this stack.
    with open_target(folder) as target, target.transaction() as conn:
        business_id = authenticate(conn, key).business_id
    found = {
        "GULLAK_URL": _read(folder / API_URL_FILE),
        "GULLAK_KEY": key,
        "GULLAK_BUSINESS": business_id,
        "DATABASE_URL": target.settings.database_url.get_secret_value(),
        "REDIS_URL": target.settings.redis_url.get_secret_value(),
        "GULLAK_SECRET_KEYS": target.settings.secret_keys.get_secret_value(),
    }
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join(f"export {name}={shlex.quote(v)}" for name, v in found.items()))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigurationError(f"no stack runs in {path.parent}: {START_HINT}") from error
