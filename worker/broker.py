"""Publishing to a broker that may be away: a message is only a wake-up, so it may be lost."""

from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError

from metering.errors import GullakError

# How publishing fails when the broker went away. kombu raises AttributeError if it was gone before
# a queue was declared anew: it then publishes on the channel that it has just closed itself.
_AWAY: Final = (OperationalError, AttributeError)


class BrokerAwayError(GullakError):
    """A wake-up did not go out; the next sweep finds the work again."""

    def __init__(self, name: str, cause: BaseException) -> None:
        super().__init__(f"{name} was not sent: {type(cause).__name__}")


def send(app: Celery, name: str, *args: int | str) -> None:
    """Send a task.

    Raises:
        BrokerAwayError: it did not go out.

    """
    try:
        app.send_task(name, args=args)
    except _AWAY as error:
        raise BrokerAwayError(name, error) from error
