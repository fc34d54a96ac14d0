"""Ends a worker that debits nothing, and sweeps while beat is silent."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from metering.buffer.keys import PULSE
from metering.buffer.stream import PULSE_TTL_S, UsageBuffer
from metering.errors import ShardMismatchError
from worker.broker import BrokerAwayError
from worker.log import is_news
from worker.task import shuffled
from worker.watchdog.consumer import PERIOD_S

DRAIN: Final = "debit.drain"
AT_ONCE_S: Final = 60.0
SILENT_AFTER_S: Final = 3.0  # beat sweeps every second: three missed sweeps are no accident

log = structlog.get_logger("gullak.watchdog")


class StandIn:
    """Sends the messages of beat while beat is silent.

    Tasks with a period of up to a minute begin at once. The others begin after their period: a beat
    that is restarted now and then must not cost a walk over the ledger each time.
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
        """Send all messages that are due.

        Raises: BrokerAwayError if one did not go out; it is due again after its period.
        """
        now = self._clock()
        for name, due_s in self._due_s.items():
            if now >= due_s:
                self._due_s[name] = now + self._periods_s[name]
                self._send(name)


class DrainWatchdog:
    """Looks every second whether usage is swept and debited. Redis and Postgres may be away."""

    def __init__(
        self,
        buffer: UsageBuffer,
        *,
        stalled_after_s: float,
        postgres_works: Callable[[], bool],
        wake_drain: Callable[[int], None],
        drain_here: Callable[[Sequence[int]], None],
        stand_in: StandIn,
        give_up: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._buffer = buffer
        self._stalled_after_s = stalled_after_s
        self._postgres_works = postgres_works
        self._wake_drain = wake_drain
        self._drain_here = drain_here
        self._stand_in = stand_in
        self._give_up = give_up
        self._clock = clock
        self._swept_at: float | None = None  # None while beat sweeps
        self._progress: tuple[object, ...] = ()
        self._progress_at = clock()

    def tick(self) -> None:
        """Sweep if beat does not; give up if there is a backlog and nothing is debited."""
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
        # This worker stands in already. It goes on until somebody else has swept after it.
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
        counters = [self._buffer.counters(shard) for shard in self._buffer.shards]
        progress = tuple((each.epoch, each.settled) for each in counters)
        # By the streams, not by the counters: false counters would never come to zero.
        busy = self._buffer.backlog().busy
        now = self._clock()
        if progress != self._progress or not busy:
            self._progress, self._progress_at = progress, now
        if now - self._progress_at < self._stalled_after_s:
            return False
        self._progress_at = now
        return self._postgres_works() and not all(
            self._buffer.waits_for_upgrade(shard) for shard in busy
        )
