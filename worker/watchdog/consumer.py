"""Ends a worker that takes no messages, and shows a sign of life while it takes them.

Celery was seen to hang in its shutdown after Redis was restarted under load. If the broker was away
for long, Celery tries again only half a minute later. It is also reported to turn its loop for ever
without taking a message (celery/celery#8091, #9054, #10302). From outside all of these look alive.
A restart takes seconds and loses nothing: the stores know what was under way.

Celery only logs an acknowledgement that failed. Its message then takes one of the places for
messages under way for as long as the connection lasts. With no place left, the worker takes nothing
and does not even notice that the connection is lost. So such a message is acknowledged again.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import sleep
from typing import Any, Final, NamedTuple, cast

import structlog
from celery import Celery, bootsteps
from celery.worker import state
from celery.worker.consumer import Consumer, Tasks
from celery.worker.request import Request
from kombu.transport.redis import Channel

from metering.buffer.room import is_full
from worker.alive import touch
from worker.settings import settings

PERIOD_S: Final = 1.0
# Looks in a row, a second apart. Looks and not seconds: a worker that was frozen itself gets time.
STALLED_LOOKS_MAX: Final = 10
STALLED_EXIT: Final = 70  # EX_SOFTWARE

log = structlog.get_logger("gullak.consumer")


class AwaitRoom(bootsteps.StartStopStep):
    """Wait, before messages are taken, while the broker is too full.

    A full Redis refuses even the note that a message is being worked on. Celery would end by that,
    or reconnect several times a second.
    """

    is_waiting = False

    def start(self, consumer: Consumer) -> None:
        """Wait: at the start, and after each reconnection."""
        try:
            while _is_too_full(consumer.app):
                AwaitRoom.is_waiting = True
                AliveStep.turns += 1
                sleep(PERIOD_S)
                state.maybe_shutdown()
        finally:
            AwaitRoom.is_waiting = False


def _is_too_full(app: Celery) -> bool:
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1)
            for queue in app.amqp.queues.consume_from.values():
                queue.bind(connection.default_channel).declare()
    except Exception as error:  # noqa: BLE001 - Celery meets any other error next
        return is_full(error)
    return False


class AliveStep(bootsteps.StartStopStep):
    """Touch the alive file every second while messages are consumed, but not without a broker.

    The event loop itself touches it: a loop that hangs stops touching it.
    """

    requires = (Tasks,)
    turns = 0

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        self._entry: Any = None
        self._held: set[str] = set()
        super().__init__(consumer, **options)

    def start(self, consumer: Consumer) -> None:
        """Begin when the consumer does: at the start, and after each reconnection."""
        self._turn(consumer)
        self._entry = consumer.timer.call_repeatedly(PERIOD_S, self._turn, (consumer,))

    def _turn(self, consumer: Consumer) -> None:
        AliveStep.turns += 1
        # A message that is held for the first time may be acknowledged by the loop in a moment.
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
    """Return the messages of Redis that take a place though their task is not under way.

    Only for the loop: messages come, and are acknowledged, between its calls.
    """
    if not isinstance(consumer.task_consumer.channel, Channel):
        return set()
    qos: Any = consumer.task_consumer.channel.qos
    # kombu itself only tells how many places are free.
    held: set[str] = set(qos._delivered) - qos._dirty  # noqa: SLF001
    # A task that is tried again waits in the timer.
    timed = (arg for scheduled in consumer.timer.queue for arg in scheduled.entry.args or ())
    waiting = {arg for arg in timed if isinstance(arg, Request)}
    return held - {each.message.delivery_tag for each in {*state.reserved_requests, *waiting}}


def _acknowledge_again(consumer: Any, tags: set[str]) -> None:
    """Free the places of these messages. If the broker is away, a later turn does it."""
    try:
        for tag in tags:
            consumer.task_consumer.channel.qos.ack(tag)
            log.warning("acknowledged again", tag=tag)
    except consumer.connection_errors as error:
        log.debug("not acknowledged", cause=type(error).__name__)


class Observation(NamedTuple):
    """How often the event loop has turned, and whether the worker has tasks now."""

    turns: int
    is_busy: bool


def observe() -> Observation:
    """Look at the consumer of this process."""
    is_busy = AwaitRoom.is_waiting or bool(state.reserved_requests)
    return Observation(AliveStep.turns, is_busy)


def oldest_messages(app: Celery) -> Sequence[bytes | None]:
    """Ask the broker for the oldest message of each queue that this worker consumes.

    The connection is its own, and made as Celery makes one, so that it understands the same URLs.

    Raises: OperationalError or RedisError if the broker is away.
    """
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel  # of Redis, which has more than the stub says
        pipe = channel.client.pipeline(transaction=False)
        for queue in app.amqp.queues.consume_from:
            pipe.lindex(queue, -1)
        return cast("list[bytes | None]", pipe.execute())


@dataclass
class ConsumerWatchdog:
    """Gives up if the broker answers, but its messages are not taken.

    A message that is taken leaves its queue, also one that has expired. A worker with all children
    busy takes none; they have time limits. Not for a pool that runs tasks inside the loop.
    """

    oldest: Callable[[], Sequence[bytes | None]]
    observe: Callable[[], Observation]
    give_up: Callable[[str], None]
    _before: tuple[Sequence[bytes | None], Observation] = ((), Observation(-1, is_busy=False))
    _stalled_looks: int = 0

    def tick(self) -> None:
        """Look once.

        Raises: any error of a broker that is away, which is no fault of the worker.
        """
        try:
            oldest = self.oldest()
        except Exception:
            self._stalled_looks = 0
            raise
        now = self.observe()
        (oldest_before, before), self._before = self._before, (oldest, now)
        is_turning = now.turns != before.turns
        is_taking = now.is_busy or not any(oldest) or oldest != oldest_before
        self._stalled_looks = 0 if is_turning and is_taking else 1 + self._stalled_looks
        if self._stalled_looks >= STALLED_LOOKS_MAX:
            self.give_up("the broker answers, but no messages are taken")


def end_process(reason: str) -> None:
    """End this process at once, so that its supervisor restarts it. A shutdown might hang too."""
    log.error("exiting to be started anew", reason=reason)
    os._exit(STALLED_EXIT)
