"""Drains without messages, while the broker takes none.

The broker may live in the Redis that usage has filled. Then no wake-up gets through until something
is drained. The drains run in a process of their own: if it dies of a batch, or hangs, this process
goes on, and none of its threads runs while the pool forks.
"""

import subprocess
import sys
from collections.abc import Iterable
from typing import Final

import structlog

from worker.app import app
from worker.log import is_news, setup_logging
from worker.settings import settings

# Each shard gets the slice of one drain: a pass over all of them ends well before this.
PASS_S_MAX: Final = 120

log = structlog.get_logger("gullak.relief")


def drain_here(shards: Iterable[int]) -> None:
    """Drain each of these shards once, in a process beside this one."""
    if is_news("relief"):
        log.warning("the broker takes no messages: draining without them")
    argv = (sys.executable, "-m", "worker.relief", *map(str, shards))
    try:
        subprocess.run(argv, check=False, timeout=PASS_S_MAX)  # noqa: S603
    except subprocess.TimeoutExpired:
        log.warning("a drain without messages hangs, and was killed")


def main() -> None:
    """Drain the shards that the command line names."""
    setup_logging(settings())
    app.loader.import_default_modules()
    drain = app.tasks["debit.drain"]
    for shard in sys.argv[1:]:
        drain(int(shard))


if __name__ == "__main__":
    main()
