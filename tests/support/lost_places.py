"""Loaded by a worker of a test: makes its last acknowledgements fail, as after a crash of Redis.

It affects only the first worker, which makes a file. A worker that finds the file is spared.
"""

import os
from pathlib import Path
from typing import Any

from celery.signals import worker_ready


@worker_ready.connect
def _lose(sender: Any, **_arguments: object) -> None:
    first = Path(os.environ["LOST_PLACES"])
    if not first.exists():
        first.touch()
        qos = sender.task_consumer.channel.qos
        for number in range(int(os.environ["LOST_PLACES_NUMBER"])):
            qos._delivered[f"lost-{number}"] = None
