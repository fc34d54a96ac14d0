"""The thread that sends recorded events to Redis, in order, with retries under the same ids."""

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from typing import Final

from metering.accept.client.pending import Pending, Waiting
from metering.accept.summed import SummedProperties
from metering.buffer.chunk import BufferedEvent
from metering.errors import BufferFullError, InvalidInputError
from metering.ids import BusinessId

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
WARN_PERIOD_S: Final = 60.0
EXIT_POLL_S: Final = 0.02

log = logging.getLogger("metering.accept")


@dataclass(frozen=True, slots=True)
class Link:
    """A connection to the buffer: `UsageBuffer.append`, `Quantities.summed` and `close`."""

    append: Callable[[BusinessId, Sequence[BufferedEvent]], None]
    summed: Callable[[BusinessId], SummedProperties]
    close: Callable[[], None]


class LogThrottle:
    """Allows one message per `WARN_PERIOD_S`; one per event would flood the log."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self) -> bool:
        """Tell whether a message may be logged now; then none may for a period."""
        if (now := monotonic()) < self._next_s:
            return False
        self._next_s = now + WARN_PERIOD_S
        return True


class Flusher:
    """One daemon thread that empties one `Pending`, from the first event until `finish`."""

    def __init__(
        self,
        pending: Pending,
        business_id: BusinessId,
        connect: Callable[[], Link],
        on_done: Callable[[], None],
    ) -> None:
        self.summed: SummedProperties = {}
        self._pending = pending
        self._business_id = business_id
        self._connect = connect
        self._on_done = on_done
        self._link: Link | None = None
        self._thread: Thread | None = None
        self._exit_mark = 0  # the number of events recorded before `hurry`
        self._give_up_at_s: float | None = None
        self._failure_log = LogThrottle()

    def ensure_started(self) -> bool:
        """Start the thread if this process has none; return whether this call started it."""
        return self._thread is None and self._start_once()

    def _start_once(self) -> bool:
        with self._pending.lock:
            if self._thread is not None:
                return False
            thread = Thread(target=self._run, name="gullak-meter", daemon=True)
            thread.start()  # if the system refuses, the next event tries again
            self._thread = thread
            return True

    def finish(self, timeout_s: float, answer_s: float) -> None:
        """Send pending events for up to `timeout_s`, drop the rest, and end the thread.

        A send in progress may take `answer_s` longer.
        """
        self._pending.shut()
        self.hurry(timeout_s)
        if self._thread is not None:
            self._thread.join(timeout_s + answer_s)

    def hurry(self, timeout_s: float) -> None:
        """Send everything now, and drop the rest after `timeout_s`. Takes no lock."""
        self._exit_mark = self._pending.request_flush()
        self._give_up_at_s = monotonic() + timeout_s
        self._pending.bell.ring()

    def is_done(self) -> bool:
        """Tell whether the events before `hurry` are sent or the time is over. Takes no lock.

        Later events do not count: other threads may record until the process ends.
        """
        return self._pending.is_released(self._exit_mark) or self._is_out_of_time()

    def _is_out_of_time(self) -> bool:
        return self._give_up_at_s is not None and monotonic() >= self._give_up_at_s

    def _run(self) -> None:
        self._load_summed()
        while not (self._pending.is_shut and self._pending.is_empty()):
            due_in_s = self._pending.due_in_s()
            if self._give_up_at_s is not None:
                due_in_s = 0.0 if due_in_s is not None else EXIT_POLL_S
                if self.is_done():
                    self._on_done()
            if due_in_s is not None and due_in_s <= 0:
                self._send(self._pending.take())
            else:
                self._pending.bell.wait(due_in_s)
        if self._link is not None:
            self._link.close()

    def _open_link(self) -> Link:
        if self._link is None:
            self._link = self._connect()
        return self._link

    def _load_summed(self) -> None:
        """Read which properties meters sum, so that `record` refuses bad quantities."""
        with suppress(Exception):  # optional, and no error may end the thread
            self.summed = self._open_link().summed(self._business_id)

    def _send(self, batch: list[Waiting]) -> None:
        """Try one batch until it is sent, found unsendable, or dropped at the end of closing."""
        attempt = 0
        # Read before each attempt, so that a flush requested during a failing one is not missed.
        nudges = self._pending.nudges
        while problem := self._attempt(batch):
            if self._is_out_of_time():
                self._give_up(batch, problem)
                return
            attempt = self._back_off(attempt, problem, nudges)
            nudges = self._pending.nudges
        if attempt:
            log.info("usage is sent again, after %d failed attempts", attempt)

    def _attempt(self, batch: list[Waiting]) -> Exception | None:
        """Send once. Returns the error if a retry can help, None if the batch is released."""
        try:
            self._open_link().append(self._business_id, [waiting.event for waiting in batch])
        except (InvalidInputError, TypeError, ValueError) as error:
            self._send_each(batch, error)
        except Exception as error:  # noqa: BLE001 - no error may end the thread
            self._note_failure(error)
            return error
        else:
            self._pending.release(batch, "sent")
            self._load_summed()
        return None

    def _note_failure(self, error: Exception) -> None:
        self._pending.note_retry(error)
        if self._failure_log():
            pending = self._pending.stats().pending
            log.warning("usage is kept and sent later: %d events pending: %s", pending, error)

    def _send_each(self, batch: list[Waiting], error: Exception) -> None:
        """Send each event alone, so that one that cannot be written does not block the others."""
        if len(batch) > 1:
            for waiting in batch:
                self._send([waiting])
            return
        log.error("event %r cannot be sent: %s", batch[0].event.event_id, error)
        self._pending.release(batch, "unsendable")

    def _give_up(self, batch: list[Waiting], problem: Exception) -> None:
        """Drop all that closing leaves. If only the answer was lost, the events are in Redis."""
        lost = 0
        while batch:
            lost += len(batch)
            self._pending.release(batch, "dropped")
            batch = self._pending.take()
        log.error("%d usage events were given up while closing: %s", lost, problem)

    def _back_off(self, attempt: int, problem: Exception, nudges: int) -> int:
        """Wait with jitter, or until another flush is requested; return the number of attempts."""
        delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempt, 10))
        if isinstance(problem, BufferFullError):
            delay_s = max(delay_s, problem.retry_after_s)
        until_s = monotonic() + delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
        if self._give_up_at_s is not None:
            until_s = min(until_s, self._give_up_at_s)
        while (left_s := until_s - monotonic()) > 0:
            if self._pending.nudges != nudges:
                return 1
            self._pending.bell.wait(left_s)
        return attempt + 1
