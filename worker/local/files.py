"""Files of the data directory: the lock, and files that only their owner may read."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from metering.errors import ConfigurationError, DataDirInUseError

DEFAULT_DATA_DIR: Final = Path(".gullak")
# In the data directory: where the API listens, and a key for it.
API_URL_FILE: Final = "api_url"
API_KEY_FILE: Final = "api_key"
# Receivers on the developer's own machine: the port of the API is open to nobody else either.
STACK_DEFAULTS: Final = {"GULLAK_WEBHOOK_ALLOW_LOOPBACK": "true"}


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

    Raises:
        DataDirInUseError: another process holds it.
        ConfigurationError: it cannot be made or written.

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
