"""The worker's own pulse: a sign of life, a sweep in place of a silent beat, and watchdogs.

Loaded by the worker and by beat.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Final, Protocol

import structlog
from celery import bootsteps
from celery.signals import beat_init, worker_init, worker_shutting_down
from celery.worker.consumer import Consumer
from redis import Redis

from metering.buffer.keys import PULSE
from metering.buffer.stream import PULSE_TTL_S, UsageBuffer
from metering.errors import ConfigurationError, ShardMismatchError
from worker.app import app
from worker.broker import BrokerAwayError
from worker.consuming import (
    PERIOD_S,
    AwaitRoom,
    DeafWatch,
    SignOfLife,
    end_process,
    hear,
    oldest_messages,
)
from worker.context import check_buffer, open_buffer
from worker.faults import read_board
from worker.health import HealthServer, metrics_text, postgres_answers
from worker.log import is_news
from worker.relief import drain_here
from worker.settings import CONFIGURATION_EXIT, Settings, settings
from worker.task import shuffled, wake

DRAIN: Final = "debit.drain"
SWEEP: Final = "debit.sweep"
AT_ONCE_S: Final = 60.0
SILENT_AFTER_S: Final = 3.0  # beat sweeps every second: three missed are no accident

log = structlog.get_logger("gullak.pulse")


@worker_init.connect
@beat_init.connect
def _refuse_to_start(**_arguments: object) -> None:
    """End a process that cannot work as it is configured, before it takes or sends a message."""
    try:
        check_buffer(settings())
    except ConfigurationError as error:
        log.critical("cannot start", cause=error.message)
        sys.exit(CONFIGURATION_EXIT)


# --- sign of life ---------------------------------------------------------------------------------

app.steps["consumer"].add(SignOfLife)


# --- sweep and watchdog ---------------------------------------------------------------------------


class StandIn:
    """Sends what beat would send, while beat is silent.

    What is done within a minute begins at once; the rest after its period, so that a beat which is
    started anew now and then costs no walk over the ledger.
    """

    def __init__(
        self,
        periods_s: Mapping[str, float],
        send: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._periods_s = periods_s
        self._send = send
        self._clock = clock
        self._due_s: dict[str, float] = {}

    def begin(self) -> None:
        """Begin to stand in."""
        now = self._clock()
        self._due_s = {
            name: now + (period_s if period_s > AT_ONCE_S else 0)
            for name, period_s in self._periods_s.items()
        }

    def send_due(self) -> None:
        """Send what is due.

        Raises:
            BrokerAwayError: it did not go out; it is due again after its period.

        """
        now = self._clock()
        for name, due_s in self._due_s.items():
            if now >= due_s:
                self._due_s[name] = now + self._periods_s[name]
                self._send(name)


class Pulse:
    """What the thread does every second; each part survives Redis and Postgres being away."""

    def __init__(
        self,
        buffer: UsageBuffer,
        *,
        stalled_after_s: float,
        postgres_answers: Callable[[], bool],
        wake_drain: Callable[[int], None],
        drain_here: Callable[[Sequence[int]], None],
        stand_in: StandIn,
        give_up: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._buffer = buffer
        self._stalled_after_s = stalled_after_s
        self._postgres_answers = postgres_answers
        self._wake_drain = wake_drain
        self._drain_here = drain_here
        self._stand_in = stand_in
        self._give_up = give_up
        self._clock = clock
        self._swept_at: float | None = None
        self._progress: tuple[object, ...] = ()
        self._progress_at = clock()

    def beat(self) -> None:
        """Sweep if nobody else did; give up if the backlog stands still."""
        try:
            if self._beat_is_silent():
                self._sweep()
            if self._is_stalled():
                self._give_up("backlog, but nothing was drained")
        except ShardMismatchError as error:
            if is_news("other shards"):
                log.warning("nothing is debited", cause=error.message)

    def _beat_is_silent(self) -> bool:
        left_ms = int(self._buffer.redis.pttl(PULSE))
        silent_s = PULSE_TTL_S - left_ms / 1000 if left_ms >= 0 else float(PULSE_TTL_S)
        if self._swept_at is None:
            return silent_s > SILENT_AFTER_S
        # We stand in already: go on every second, until a pulse is younger than our own.
        own_age_s = self._clock() - self._swept_at
        if silent_s < own_age_s - PERIOD_S / 2:
            log.info("beat sweeps again")
            self._swept_at = None
            return False
        return True

    def _sweep(self) -> None:
        if self._swept_at is None:
            log.warning("beat is silent: sweeping in its place")
            self._stand_in.begin()
        busy = shuffled(self._buffer.sweep().busy)
        try:
            for shard in busy:
                self._wake_drain(shard)
            self._stand_in.send_due()
        except BrokerAwayError:
            self._drain_here(busy)
        self._swept_at = self._clock()

    def _is_stalled(self) -> bool:
        """Tell whether nothing was drained for too long although something could have been."""
        accounts = [self._buffer.counters(shard) for shard in self._buffer.shards]
        progress = tuple((account.epoch, account.settled) for account in accounts)
        # Of the streams, and not of the accounts: those can be off, and then never come to zero.
        busy = self._buffer.backlog().busy
        now = self._clock()
        if progress != self._progress or not busy:
            self._progress, self._progress_at = progress, now
        if now - self._progress_at < self._stalled_after_s:
            return False
        self._progress_at = now
        return self._postgres_answers() and not all(
            self._buffer.waits_for_upgrade(shard) for shard in busy
        )


class Beats(Protocol):
    """What is done every second."""

    def beat(self) -> None:
        """Do it once."""


def run(pulse: Beats, stop: Event) -> None:
    """Beat every second until `stop`; a failure is logged once, not once a second."""
    failing = False
    while not stop.wait(PERIOD_S):
        try:
            pulse.beat()
            failing = False
        except Exception as error:  # noqa: BLE001  # whatever fails now may work a second later
            if not failing:
                log.warning("no pulse for now", cause=type(error).__name__)
            failing = True


class Watches(bootsteps.StartStopStep):
    """Start the threads of this module before the broker is reached.

    That it cannot be, or is too full to take messages, is among what they help against.
    """

    are_started = False

    def start(self, consumer: Consumer) -> None:
        """Start them: once, whatever is connected anew later."""
        if not Watches.are_started:
            Watches.are_started = True
            _start(consumer)

    def stop(self, consumer: Consumer) -> None:
        """Leave them: they end with the process."""


AwaitRoom.requires = (Watches,)
app.steps["consumer"] |= {Watches, AwaitRoom}


def _start(sender: Consumer) -> None:
    config = settings()
    if config.metrics_port and config.metrics_dir:
        _serve_metrics(config.metrics_port, config.metrics_dir)
    pulses: list[Beats] = [DeafWatch(lambda: oldest_messages(sender.app), hear, _end_unless_told)]
    if "debit" in sender.app.amqp.queues.consume_from:
        pulses.append(_pulse(config))
    for pulse in pulses:
        Thread(target=run, args=(pulse, Event()), name="pulse", daemon=True).start()


@dataclass
class _Shutdown:
    """Whether this worker was told to stop: a plain flag, because an `Event` can deadlock there."""

    is_told: bool = False


_shutdown: Final = _Shutdown()


@worker_shutting_down.connect
def _note_shutdown(**_arguments: object) -> None:
    _shutdown.is_told = True


def _end_unless_told(reason: str) -> None:
    """End this process; but one that was told to stop finishes what it does, and takes no more."""
    if not _shutdown.is_told:
        end_process(reason)


def _serve_metrics(port: int, folder: Path) -> None:
    # All interfaces: in a container the scraper is another one. Nothing here is secret.
    HealthServer("0.0.0.0", port, metrics=lambda: metrics_text(folder), missing=list)  # noqa: S104


def _postgres_works(config: Settings, redis: "Redis") -> bool:
    """Tell whether Postgres answers, and no drain has just met a fault of it: then all wait."""
    url = config.database_url.get_secret_value()
    return DRAIN not in read_board(redis) and postgres_answers(url)


def _periods_s() -> dict[str, float]:
    """Return how often beat sends each task; but the buffer is swept by the pulse itself."""
    schedule = app.conf.beat_schedule.values()
    return {entry["task"]: entry["schedule"] for entry in schedule if entry["task"] != SWEEP}


def _pulse(config: Settings) -> Pulse:
    buffer = open_buffer(config)
    return Pulse(
        buffer,
        stalled_after_s=config.watchdog_s,
        postgres_answers=lambda: _postgres_works(config, buffer.redis),
        wake_drain=lambda shard: wake(DRAIN, shard),
        drain_here=drain_here,
        stand_in=StandIn(_periods_s(), wake),
        give_up=end_process,
    )
