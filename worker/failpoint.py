"""Named points at which a process kills itself: how fault tests hit the gap between two steps."""

import os
import signal
from contextlib import suppress

from metering.checkpoint import Checkpoint, no_checkpoint
from worker.settings import Settings


def checkpoint_of(config: Settings) -> Checkpoint:
    """Return a function that sends SIGKILL to this process at a point that has a file, once.

    The file is named like the point and lies in the configured folder; whoever takes it away dies.
    """
    folder = config.failpoint_dir
    if folder is None:
        return no_checkpoint

    def checkpoint(reached: str) -> None:
        with suppress(FileNotFoundError):
            (folder / reached).unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint
