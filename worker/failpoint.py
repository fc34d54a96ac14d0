"""Named points at which a process kills itself: how fault tests hit the gap between two steps."""

import os
import signal
from pathlib import Path

from metering.checkpoint import Checkpoint, no_checkpoint
from worker.settings import Settings


def checkpoint_of(config: Settings) -> Checkpoint:
    """Return a function that sends SIGKILL to this process at the configured point, once.

    The file makes it once: whoever creates it dies; after the restart it is there.
    """
    name, marker = config.failpoint, config.failpoint_file
    if not name or marker is None:
        return no_checkpoint

    def checkpoint(reached: str) -> None:
        if reached == name and _first(marker):
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint


def _first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
