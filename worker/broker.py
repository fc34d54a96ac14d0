"""Publishing to a broker that may be away: a message is only a wake-up, so it may be lost."""

from traceback import walk_tb
from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError

from metering.errors import GullakError

# A sweep sends each wake-up again every second: of those that nobody takes, no more than these are
# kept. Far longer than clocks of different machines may differ.
EXPIRES_S: Final = 10.0


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
        app.send_task(name, args=args, expires=EXPIRES_S)
    except OperationalError as error:
        raise BrokerAwayError(name, error) from error
    except AttributeError as error:
        if not _is_of_kombu(error):
            raise
        raise BrokerAwayError(name, error) from error


def _is_of_kombu(error: AttributeError) -> bool:
    """Tell whether kombu published on a channel that it has just closed itself.

    It does when the broker was gone before a queue was declared anew, and is back by then.
    """
    frames = [frame for frame, _line in walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals["__name__"]).startswith("kombu.")
