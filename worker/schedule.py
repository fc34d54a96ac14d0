"""How beat sends what is due. Nothing lies on a disk, where a kill could tear it."""

from typing import Any

from celery.beat import ScheduleEntry, Scheduler

from worker.alive import touch
from worker.broker import has_room
from worker.settings import settings


class BoundedScheduler(Scheduler):
    """Beat's own scheduler; but it sends nothing to a queue that is full."""

    def apply_async(self, entry: ScheduleEntry, *args: Any, **options: Any) -> Any:
        """Send what is due; the sign of life, every second, says that the broker took it."""
        sent = None
        if has_room(self.app, str(entry.task)):
            sent = super().apply_async(entry, *args, **options)
        touch(settings().alive_file)
        return sent
