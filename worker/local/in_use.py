"""What a stack works with, written where commands look for it.

D/in_use.json   the servers and keys of the stack that ran here last (0600)
D/secret_key    the key that seals the secrets of a database in this data directory (0600)
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from metering.errors import ConfigurationError
from metering.vault import new_key
from worker.local.files import write_private

# Servers, keys, and which receivers of webhooks the stack reaches: commands must not guess.
_NAMES: Final = (
    "DATABASE_URL",
    "REDIS_URL",
    "GULLAK_SECRET_KEYS",
    "GULLAK_WEBHOOK_ALLOW_LOOPBACK",
    "GULLAK_WEBHOOK_ALLOW_PRIVATE",
)


def write_in_use(data_dir: Path, variables: Mapping[str, str]) -> None:
    """Note the servers and keys of a stack that starts on this data directory."""
    found = {name: variables[name] for name in _NAMES if variables.get(name)}
    write_private(data_dir / "in_use.json", json.dumps(found))


def read_in_use(data_dir: Path) -> Mapping[str, str]:
    """Return what the last stack here worked with; nothing if there never was one.

    Raises:
        ConfigurationError: the file cannot be read.

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


def kept_key(data_dir: Path) -> str:
    """Return the key of this data directory's database, made on first use."""
    path = data_dir / "secret_key"
    if not path.exists():
        write_private(path, new_key())
    return path.read_text().strip()
