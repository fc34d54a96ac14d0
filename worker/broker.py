"""Publishing to a broker that may be away or full. A message is a wake-up, so it may be lost."""

from traceback import walk_tb
from typing import Any, Final

import structlog
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel
from redis.exceptions import RedisError

from metering.errors import GullakError
from worker.alive import touch
from worker.log import is_news
from worker.settings import settings

# A sweep sends each wake-up again every second, so an old one is worth nothing. Far longer than the
# clocks of two machines may differ.
EXPIRES_S: Final = 10.0
# An expired message leaves its queue only when a worker takes it. One sweep sends fewer than this:
# at most 256 for shards, or 320 for purchases.
QUEUE_MESSAGES_MAX: Final = 500

log = structlog.get_logger("gullak.broker")


class BrokerAwayError(GullakError):
    """A wake-up did not go out; the next sweep finds the work again."""

    def __init__(self, name: str, cause: BaseException) -> None:
        super().__init__(f"{name} was not sent: {type(cause).__name__}")


def send(app: Celery, name: str, *args: int | str) -> None:
    """Send a task, unless its queue is full.

    Raises: BrokerAwayError if it did not go out.
    """
    try:
        if has_room(app, name):
            app.send_task(name, args=args, expires=EXPIRES_S)
    except OperationalError as error:
        raise BrokerAwayError(name, error) from error
    except AttributeError as error:
        if not _is_of_kombu(error):
            raise
        raise BrokerAwayError(name, error) from error


def has_room(app: Celery, name: str) -> bool:
    """Tell whether the queue of a task is short enough for one more message.

    Other brokers than Redis bound their queues themselves. If the broker is away the answer is yes:
    the publishing finds out, and connects again.
    """
    queue = app.amqp.router.route({}, name)["queue"].name
    try:
        with app.producer_or_acquire() as producer:
            channel: Any = producer.channel
            if not isinstance(channel, Channel):
                return True
            length = channel.client.llen(queue)
    except (OperationalError, RedisError, OSError):
        return True
    if length >= QUEUE_MESSAGES_MAX and is_news(f"queue {queue} is full"):
        log.warning("no worker takes these messages in time: no more are sent", queue=queue)
    return bool(length < QUEUE_MESSAGES_MAX)


def _is_of_kombu(error: AttributeError) -> bool:
    """Tell whether kombu published on a channel that it has just closed itself.

    It does so if the broker went away before a queue was declared again, and has come back.
    """
    frames = [frame for frame, _line in walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals["__name__"]).startswith("kombu.")


class BoundedScheduler(Scheduler):
    """The scheduler of beat, in memory: a kill tears no file. It sends nothing to a full queue."""

    def apply_async(self, entry: ScheduleEntry, *args: Any, **options: Any) -> Any:
        """Send a task that is due, and touch the alive file: the broker took it."""
        sent = None
        if has_room(self.app, str(entry.task)):
            sent = super().apply_async(entry, *args, **options)
        touch(settings().alive_file)
        return sent
