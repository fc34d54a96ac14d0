"""The files of a data directory D that belong to no server. Only their owner may read them.

D/lock          held while a stack runs here; it holds the id of the process
D/api_url       where the API listens
D/api_key       a key for it
D/in_use.json   the servers and keys of the stack that ran here last, for commands
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from metering.errors import ConfigurationError, DataDirInUseError

DEFAULT_DATA_DIR: Final = Path(".gullak")
API_URL_FILE: Final = "api_url"
API_KEY_FILE: Final = "api_key"
# The receivers of a developer are on this machine, and the API is open to nobody else.
STACK_DEFAULTS: Final = {"GULLAK_WEBHOOK_ALLOW_LOOPBACK": "true"}
# Commands must not guess: servers, keys, and the receivers that the stack may reach.
_NAMES: Final = (
    "DATABASE_URL",
    "REDIS_URL",
    "GULLAK_SECRET_KEYS",
    "GULLAK_WEBHOOK_ALLOW_LOOPBACK",
    "GULLAK_WEBHOOK_ALLOW_PRIVATE",
)


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; only this user can read it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


@contextmanager
def lock_data_dir(data_dir: Path) -> Iterator[None]:
    """Make the data directory and hold it for this process.

    Raises: DataDirInUseError if another process holds it, ConfigurationError if it cannot be made.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = (data_dir / "lock").open("a+")
    except OSError as error:
        raise ConfigurationError(f"cannot use {data_dir}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip()
            pid = int(holder) if holder.isdigit() else None
            raise DataDirInUseError(str(data_dir), pid) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def write_in_use(data_dir: Path, variables: Mapping[str, str]) -> None:
    """Note the variables of a stack that starts on this data directory."""
    found = {name: variables[name] for name in _NAMES if variables.get(name)}
    write_private(data_dir / "in_use.json", json.dumps(found))


def read_in_use(data_dir: Path) -> Mapping[str, str]:
    """Return the variables of the last stack here. Empty if there never was one.

    Raises: ConfigurationError if the file cannot be read.
    """
    path = data_dir / "in_use.json"
    try:
        found = json.loads(path.read_text())
        return {name: str(found[name]) for name in _NAMES if name in found}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from error
