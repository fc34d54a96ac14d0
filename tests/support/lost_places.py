"""Loaded by a worker of a test: its last acknowledgements have failed, as after Redis died.

The first worker only: the file that is made tells the next one that it is not the first.
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
