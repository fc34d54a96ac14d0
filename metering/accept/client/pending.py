"""The events that a producer has recorded and not yet sent: bounded, in order, counted."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition, Lock, RLock
from time import monotonic
from typing import Literal, NamedTuple

from prometheus_client import Counter

from metering.buffer.chunk import BufferedEvent

Fate = Literal["sent", "dropped", "unsendable"]

EVENTS = Counter(
    "gullak_meter_events_total", "Events of this process's meters by what became of them.", ["fate"]
)
RETRIES = Counter("gullak_meter_retries_total", "Sends of this process's meters that failed.")


class Waiting(NamedTuple):
    """A recorded event, its size as JSON, and when it was recorded (`time.monotonic`)."""

    event: BufferedEvent
    size_bytes: int
    recorded_at_s: float


@dataclass(frozen=True, slots=True)
class MeterStats:
    """Counts since the meter was made: recorded = sent + dropped + unsendable + pending.

    dropped     the pending list was full, or closing ran out of time
    unsendable  no chunk can hold the event, or the API refuses it
    retries     failed sends; each is repeated with the same event ids
    """

    recorded: int
    sent: int
    dropped: int
    unsendable: int
    pending: int
    pending_bytes: int
    retries: int
    last_error: str | None


class Bell:
    """A wake-up for one waiting thread, made of a raw lock.

    A signal handler can interrupt the main thread anywhere, even inside the `with` of a Condition.
    Releasing a raw lock is safe there; setting an `Event` could hang.
    """

    def __init__(self) -> None:
        self._silence = Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake the waiter now, or end its next wait at once."""
        try:
            self._silence.release()
        except RuntimeError:
            return  # it is ringing already

    def wait(self, timeout_s: float | None) -> None:
        """Wait until it rings, for at most `timeout_s`; without a limit if that is None."""
        self._silence.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))


class Pending:
    """A bounded queue with many producers and one consumer.

    A batch that was taken stays pending until it is released. Metrics are counted under the lock
    of the queue. A fork takes that lock first, so no child inherits the held lock of a metric.
    """

    def __init__(
        self, *, events_max: int, bytes_max: int, flush_events: int, flush_interval_s: float
    ) -> None:
        self.lock = RLock()
        self.bell = Bell()
        self.nudges = 0
        self._changed = Condition(self.lock)
        self._queue: deque[Waiting] = deque()
        self._events_max, self._bytes_max = events_max, bytes_max
        self._flush_events, self._flush_interval_s = flush_events, flush_interval_s
        self._added = self._left = self._wanted = self._bytes = 0
        self._fates: dict[Fate, int] = {"sent": 0, "dropped": 0, "unsendable": 0}
        self._is_shut = False
        self._retries = 0
        self._last_error: str | None = None

    def offer(self, event: BufferedEvent, size_bytes: int, *, wait_s: float = 0.0) -> bool:
        """Add an event; wait up to `wait_s` for room. Return whether it was added.

        Raises: RuntimeError after `shut`, because no thread would send the event.
        """
        with self.lock:
            if not self._has_room(size_bytes) and not self._changed.wait_for(
                lambda: self._has_room(size_bytes), wait_s
            ):
                return False
            if self._is_shut:
                raise RuntimeError("the meter is closed")
            self._queue.append(Waiting(event, size_bytes, monotonic()))
            self._added += 1
            self._bytes += size_bytes
            queued = len(self._queue)
        # The first event starts the consumer's timer; a full batch ends it early.
        if queued in (1, self._flush_events):
            self.bell.ring()
        return True

    def _has_room(self, size_bytes: int) -> bool:
        return (
            self._added - self._left < self._events_max
            and self._bytes + size_bytes <= self._bytes_max
        )

    def count_dropped(self) -> None:
        """Count an event that was dropped because there was no room."""
        with self.lock:
            self._count("dropped", 1)

    def due_in_s(self) -> float | None:
        """Return the time until the next batch is due: at most 0 if now, None if none is queued."""
        with self.lock:
            if not self._queue:
                return None
            if len(self._queue) >= self._flush_events or self._left < self._wanted:
                return 0.0
            return self._queue[0].recorded_at_s + self._flush_interval_s - monotonic()

    def take(self) -> list[Waiting]:
        """Take one batch of the oldest events."""
        with self.lock:
            count = min(len(self._queue), self._flush_events)
            return [self._queue.popleft() for _ in range(count)]

    def release(self, batch: Sequence[Waiting], fate: Fate) -> None:
        """Stop keeping a batch that was taken."""
        with self.lock:
            self._left += len(batch)
            self._bytes -= sum(waiting.size_bytes for waiting in batch)
            self._count(fate, len(batch))
            self._changed.notify_all()

    def _count(self, fate: Fate, events: int) -> None:
        self._fates[fate] += events
        EVENTS.labels(fate).inc(events)

    def note_retry(self, error: Exception) -> None:
        """Count a send that failed."""
        with self.lock:
            self._retries += 1
            self._last_error = f"{type(error).__name__}: {error}"
            RETRIES.inc()

    def request_flush(self) -> int:
        """Make all pending events due now; return the number for `wait_released`. Takes no lock."""
        self._wanted = wanted = self._added
        self.nudges += 1
        self.bell.ring()
        return wanted

    def wait_released(self, wanted: int, timeout_s: float) -> bool:
        """Wait until the first `wanted` events are released; return whether they are."""
        with self.lock:
            return self._changed.wait_for(lambda: self._left >= wanted, timeout_s)

    def shut(self) -> None:
        """Accept no more events."""
        with self.lock:
            self._is_shut = True

    @property
    def is_shut(self) -> bool:
        """Whether `shut` was called."""
        return self._is_shut

    def is_released(self, wanted: int) -> bool:
        """Tell whether the first `wanted` events are released. Takes no lock."""
        return self._left >= wanted

    def is_empty(self) -> bool:
        """Tell whether every event is released. Takes no lock."""
        return self._left >= self._added

    def stats(self) -> MeterStats:
        """Return the current counts."""
        with self.lock:
            pending = self._added - self._left
            return MeterStats(
                recorded=pending + sum(self._fates.values()),
                pending=pending,
                pending_bytes=self._bytes,
                retries=self._retries,
                last_error=self._last_error,
                **self._fates,
            )
