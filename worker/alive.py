"""A sign of life in a file, for the supervisor and for the health check of a container.

`python -m worker.alive FILE` exits with 0 if the sign is fresh. It imports next to nothing, because
a health check runs every few seconds.
"""

import os
import sys
import time
from pathlib import Path
from typing import Final

ALIVE_WITHIN_S: Final = 30.0  # a broker that is away for a moment must not look like a hang


def touch(path: Path | None) -> None:
    """Write the id of this process to the file. The time of the change is the sign of life."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # In one step: a reader must not find the file empty.
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(str(os.getpid()))
    new.replace(path)


def is_alive(path: Path, pid: int | None = None, within_s: float = ALIVE_WITHIN_S) -> bool:
    """Tell whether `pid` (default: any process) has given a sign of life within this time."""
    try:
        signed, age_s = path.read_text(), time.time() - path.stat().st_mtime
    except OSError:
        return False
    return age_s < within_s and (pid is None or signed == str(pid))


def main() -> None:
    """Check the file that the command line names."""
    sys.exit(0 if is_alive(Path(sys.argv[1])) else 1)


if __name__ == "__main__":
    main()
