"""Whether a worker takes messages: the sign that it does, and its end when it does not.

When Redis was restarted under load, Celery was seen to end by an error of its own while it closed
the lost connection, and then to hang in its shutdown; it tries again only half a minute later if
the broker was away for long; and it has been reported to turn its loop for ever without taking a
message (celery/celery#8091, #9054, #10302). From outside all of these look alive. To start anew
takes seconds, and loses nothing: what was under way is redone from the stores.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import structlog
from celery import bootsteps
from celery.worker import state
from celery.worker.consumer import Consumer, Tasks
from redis import Redis
from redis.exceptions import RedisError

from worker.alive import touch
from worker.settings import settings

PERIOD_S: Final = 1.0
# So many looks in a row, a second apart, and not so many seconds: a worker that was itself frozen
# for a while is given time to come round.
DEAF_LOOKS_MAX: Final = 10
STALLED_EXIT: Final = 70  # EX_SOFTWARE

log = structlog.get_logger("gullak.consuming")


class SignOfLife(bootsteps.StartStopStep):
    """Touch a file every second while messages are consumed; silent while the broker is away.

    It is touched from inside the event loop, so that a loop which hangs stops touching it.
    """

    requires = (Tasks,)
    turns = 0

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        self._entry: Any = None
        super().__init__(consumer, **options)

    def start(self, consumer: Consumer) -> None:
        """Begin when the consumer does: at the start, and after each reconnection."""
        self._give()
        self._entry = consumer.timer.call_repeatedly(PERIOD_S, self._give)

    def _give(self) -> None:
        SignOfLife.turns += 1
        touch(settings().alive_file)

    def stop(self, consumer: Consumer) -> None:  # noqa: ARG002
        """End with the consumer."""
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None

    shutdown = stop


class Heard(NamedTuple):
    """What this worker has done so far: turns of its loop, messages taken; and its tasks now."""

    turns: int
    taken: int
    is_busy: bool


def hear() -> Heard:
    """Look at this process's consumer."""
    return Heard(SignOfLife.turns, state.all_total_count[0], bool(state.reserved_requests))


@dataclass
class DeafWatch:
    """Gives up when the broker answers, but its messages are not taken.

    broker  with a short timeout; queues: that this worker consumes now
    """

    broker: Redis
    queues: Callable[[], Collection[str]]
    hear: Callable[[], Heard]
    give_up: Callable[[str], None]
    _before: Heard | None = None
    _deaf_looks: int = 0

    def beat(self) -> None:
        """Look once.

        Raises:
            RedisError: the broker is away, which is no fault of the worker's.

        """
        try:
            are_waiting = self._are_waiting()
        except RedisError:
            self._deaf_looks = 0
            raise
        now, before = self.hear(), self._before
        self._before = now
        is_turning = before is None or now.turns != before.turns
        is_taking = before is None or now.taken != before.taken or now.is_busy
        self._deaf_looks = (
            0 if is_turning and (is_taking or not are_waiting) else 1 + self._deaf_looks
        )
        if self._deaf_looks >= DEAF_LOOKS_MAX:
            self.give_up("the broker answers, but no messages are taken")

    def _are_waiting(self) -> bool:
        pipe = self.broker.pipeline(transaction=False)
        pipe.ping()
        for queue in self.queues():
            pipe.llen(queue)
        _pong, *lengths = pipe.execute()
        return any(lengths)


def end_process(reason: str) -> None:
    """End this process at once: its supervisor starts it anew. A shutdown might hang as well."""
    log.error("exiting to be started anew", reason=reason)
    os._exit(STALLED_EXIT)
