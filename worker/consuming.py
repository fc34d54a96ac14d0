"""Whether a worker takes messages: the sign that it does, and its end when it does not.

When Redis was restarted under load, Celery was seen to end by an error of its own while it closed
the lost connection, and then to hang in its shutdown; it tries again only half a minute later if
the broker was away for long; and it has been reported to turn its loop for ever without taking a
message (celery/celery#8091, #9054, #10302). From outside all of these look alive. To start anew
takes seconds, and loses nothing: what was under way is redone from the stores.

An acknowledgement that failed is only logged: its message takes one of the places for messages
under way for as long as the connection lasts, and when no place is left nothing is taken, nor is it
noticed that the connection was lost. So it is acknowledged again.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import sleep
from typing import Any, Final, NamedTuple, cast

import structlog
from celery import Celery, bootsteps
from celery.worker import state
from celery.worker.consumer import Connection, Consumer, Tasks
from celery.worker.request import Request
from kombu.transport.redis import Channel

from metering.buffer.room import is_full
from worker.alive import touch
from worker.settings import settings

PERIOD_S: Final = 1.0
# So many looks in a row, a second apart, and not so many seconds: a worker that was itself frozen
# for a while is given time to come round.
DEAF_LOOKS_MAX: Final = 10
STALLED_EXIT: Final = 70  # EX_SOFTWARE

log = structlog.get_logger("gullak.consuming")


class AwaitRoom(bootsteps.StartStopStep):
    """Wait, before messages are taken, while the broker is too full to take any.

    A Redis that is full refuses even to note that a message is being worked on. Celery would end
    by that, or begin anew several times a second.
    """

    is_waiting = False

    def start(self, consumer: Consumer) -> None:
        """Wait: at the start, and after each reconnection."""
        try:
            while _is_too_full(consumer.app):
                AwaitRoom.is_waiting = True
                SignOfLife.turns += 1
                sleep(PERIOD_S)
                state.maybe_shutdown()
        finally:
            AwaitRoom.is_waiting = False


# The connection already takes a lock in the broker.
Connection.requires = (AwaitRoom,)


def _is_too_full(app: Celery) -> bool:
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1)
            for queue in app.amqp.queues.consume_from.values():
                queue.bind(connection.default_channel).declare()
    except Exception as error:  # noqa: BLE001 - whatever else it is, Celery meets it next
        return is_full(error)
    return False


class SignOfLife(bootsteps.StartStopStep):
    """Touch a file every second while messages are consumed; silent while the broker is away.

    It is touched from inside the event loop, so that a loop which hangs stops touching it.
    """

    requires = (Tasks,)
    turns = 0

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        self._entry: Any = None
        self._held: set[str] = set()
        super().__init__(consumer, **options)

    def start(self, consumer: Consumer) -> None:
        """Begin when the consumer does: at the start, and after each reconnection."""
        self._give(consumer)
        self._entry = consumer.timer.call_repeatedly(PERIOD_S, self._give, (consumer,))

    def _give(self, consumer: Consumer) -> None:
        SignOfLife.turns += 1
        # Seen once, it may be about to be acknowledged by the loop itself.
        before, self._held = self._held, _held_in_vain(consumer)
        _acknowledge_again(consumer, before & self._held)
        touch(settings().alive_file)

    def stop(self, consumer: Consumer) -> None:  # noqa: ARG002
        """End with the consumer."""
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None

    shutdown = stop


def _held_in_vain(consumer: Any) -> set[str]:
    """Return the messages of Redis that take a place though no task of theirs is under way.

    To be called from the loop: messages come, and are acknowledged, between its calls.
    """
    if not isinstance(consumer.task_consumer.channel, Channel):
        return set()
    qos: Any = consumer.task_consumer.channel.qos
    held: set[str] = set(qos._delivered) - qos._dirty  # noqa: SLF001 - kombu tells only how many are free
    # A task that is tried again waits in the timer.
    timed = (arg for scheduled in consumer.timer.queue for arg in scheduled.entry.args or ())
    waiting = {arg for arg in timed if isinstance(arg, Request)}
    return held - {each.message.delivery_tag for each in {*state.reserved_requests, *waiting}}


def _acknowledge_again(consumer: Any, tags: set[str]) -> None:
    """Give the places of these messages free; where the broker is away, a later turn does it."""
    try:
        for tag in tags:
            consumer.task_consumer.channel.qos.ack(tag)
            log.warning("acknowledged again", tag=tag)
    except consumer.connection_errors as error:
        log.debug("not acknowledged", cause=type(error).__name__)


class Heard(NamedTuple):
    """What this worker does.

    The turns of its loop so far, and whether it has tasks now.
    """

    turns: int
    is_busy: bool


def hear() -> Heard:
    """Look at this process's consumer."""
    is_busy = AwaitRoom.is_waiting or bool(state.reserved_requests)
    return Heard(SignOfLife.turns, is_busy)


def oldest_messages(app: Celery) -> Sequence[bytes | None]:
    """Ask the broker for the oldest message of each queue that this worker consumes.

    On a connection of its own, made as Celery makes them, so that it understands the same URLs.

    Raises:
        OperationalError, RedisError: the broker is away.

    """
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel  # of Redis, which has more than the stub says
        pipe = channel.client.pipeline(transaction=False)
        for queue in app.amqp.queues.consume_from:
            pipe.lindex(queue, -1)
        return cast("list[bytes | None]", pipe.execute())


@dataclass
class DeafWatch:
    """Gives up when the broker answers, but its messages are not taken.

    A message that is taken leaves its queue, also one that has expired. Whose children are all
    busy takes none; they have time limits. Not for a pool that runs tasks inside the loop.
    """

    oldest: Callable[[], Sequence[bytes | None]]
    hear: Callable[[], Heard]
    give_up: Callable[[str], None]
    _before: tuple[Sequence[bytes | None], Heard] = ((), Heard(-1, is_busy=False))
    _deaf_looks: int = 0

    def beat(self) -> None:
        """Look once.

        Raises:
            Exception: the broker is away, which is no fault of the worker's.

        """
        try:
            oldest = self.oldest()
        except Exception:
            self._deaf_looks = 0
            raise
        heard = self.hear()
        (oldest_before, heard_before), self._before = self._before, (oldest, heard)
        is_turning = heard.turns != heard_before.turns
        is_taking = heard.is_busy or not any(oldest) or oldest != oldest_before
        self._deaf_looks = 0 if is_turning and is_taking else 1 + self._deaf_looks
        if self._deaf_looks >= DEAF_LOOKS_MAX:
            self.give_up("the broker answers, but no messages are taken")


def end_process(reason: str) -> None:
    """End this process at once: its supervisor starts it anew. A shutdown might hang as well."""
    log.error("exiting to be started anew", reason=reason)
    os._exit(STALLED_EXIT)
