"""Publishing to a broker that may be away: a message is only a wake-up, so it may be lost."""

from traceback import walk_tb
from typing import Any, Final

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel
from redis.exceptions import RedisError

from metering.errors import GullakError
from worker.log import is_news

# A sweep sends each wake-up again every second: of those that nobody takes, no more than these are
# kept. Far longer than clocks of different machines may differ.
EXPIRES_S: Final = 10.0
# What has expired leaves its queue only when a worker comes to it. More than one sweep ever sends:
# a wake-up of each of 256 shards, or 320 of purchases.
QUEUE_MESSAGES_MAX: Final = 500

log = structlog.get_logger("gullak.broker")


class BrokerAwayError(GullakError):
    """A wake-up did not go out; the next sweep finds the work again."""

    def __init__(self, name: str, cause: BaseException) -> None:
        super().__init__(f"{name} was not sent: {type(cause).__name__}")


def send(app: Celery, name: str, *args: int | str) -> None:
    """Send a task, unless its queue is full.

    Raises:
        BrokerAwayError: it did not go out.

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

    Its workers have enough to do, or there are none. Other brokers than Redis bound their queues
    themselves. A broker that is away is met by the publishing, which connects anew.
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

    It does when the broker was gone before a queue was declared anew, and is back by then.
    """
    frames = [frame for frame, _line in walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals["__name__"]).startswith("kombu.")
