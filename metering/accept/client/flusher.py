"""The thread that sends recorded events, in order, with retries under the same ids."""

import logging
import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from typing import Final

from metering.accept.client.pending import Pending, Waiting
from metering.accept.summed import SummedProperties
from metering.buffer.chunk import BufferedEvent
from metering.errors import (
    ApiUnavailableError,
    BufferFullError,
    ForbiddenError,
    InvalidInputError,
    UnauthorizedError,
)
from metering.ids import BusinessId

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
WARN_PERIOD_S: Final = 60.0
EXIT_POLL_S: Final = 0.02

_NAMED: Final = re.compile(r"events\[(\d{1,9})\]")

_WRONG_KEY: Final = (UnauthorizedError, ForbiddenError)

log = logging.getLogger("metering.accept")


@dataclass(frozen=True, slots=True)
class Link:
    """A connection to the buffer: `UsageBuffer.append`, `Quantities.summed` and `close`."""

    append: Callable[[BusinessId, Sequence[BufferedEvent]], None]
    summed: Callable[[BusinessId], SummedProperties]
    close: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Route:
    """How a meter sends: over which link, and in which requests.

    requests_of  cuts a batch; each request is taken whole or not at all
    answer_s     how long a request may take
    """

    connect: Callable[[], Link]
    requests_of: Callable[[list[Waiting]], list[list[Waiting]]]
    answer_s: float


def whole(batch: list[Waiting]) -> list[list[Waiting]]:
    """Return a batch as one request."""
    return [batch]


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
        route: Route,
        on_done: Callable[[], None],
    ) -> None:
        self.summed: SummedProperties = {}
        self._pending = pending
        self._business_id = business_id
        self._route = route
        self._on_done = on_done
        self._requests: deque[list[Waiting]] = deque()  # of the batch that was taken
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
                self._requests.extend(self._route.requests_of(self._pending.take()))
                while self._requests:
                    self._send(self._requests.popleft())
            else:
                self._pending.bell.wait(due_in_s)
        if self._link is not None:
            self._link.close()

    def _open_link(self) -> Link:
        if self._link is None:
            self._link = self._route.connect()
        return self._link

    def _load_summed(self) -> None:
        """Read which properties meters sum, so that `record` refuses bad quantities."""
        with suppress(Exception):  # optional, and no error may end the thread
            self.summed = self._open_link().summed(self._business_id)

    def _send(self, batch: list[Waiting]) -> None:
        """Try one request until it is sent, cannot be sent so, or is dropped while closing."""
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
        """Send once. Returns the error if a retry can help, None if nothing of `batch` is left."""
        try:
            self._open_link().append(self._business_id, [waiting.event for waiting in batch])
        except (InvalidInputError, TypeError, ValueError) as error:
            self._set_aside(batch, error)
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
            level = logging.ERROR if isinstance(error, _WRONG_KEY) else logging.WARNING
            log.log(level, "usage is kept and sent later: %d events pending: %s", pending, error)

    def _set_aside(self, batch: list[Waiting], error: Exception) -> None:
        """Release the events that `error` names, and send the others.

        If it names none, send two halves, until the event is alone that cannot be sent.
        """
        reasons = _reasons(error, batch)
        middle = len(batch) // 2
        if not reasons and middle:
            self._requests.extendleft((batch[middle:], batch[:middle]))
            return
        reasons = reasons or {0: str(error)}
        for index, reason in reasons.items():
            log.error("event %r cannot be sent: %s", batch[index].event.event_id, reason)
        self._pending.release([batch[index] for index in reasons], "unsendable")
        if others := [one for index, one in enumerate(batch) if index not in reasons]:
            self._requests.appendleft(others)

    def _give_up(self, batch: list[Waiting], problem: Exception) -> None:
        """Drop all that closing leaves. If only the answer was lost, the events have arrived."""
        lost = 0
        while batch:
            lost += len(batch)
            self._pending.release(batch, "dropped")
            batch = self._requests.popleft() if self._requests else self._pending.take()
        log.error("%d usage events were given up while closing: %s", lost, problem)

    def _back_off(self, attempt: int, problem: Exception, nudges: int) -> int:
        """Wait with jitter, or until another flush is requested; return the number of attempts."""
        delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempt, 10))
        if isinstance(problem, BufferFullError):
            delay_s = max(delay_s, problem.retry_after_s)
        delay_s *= random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
        if isinstance(problem, ApiUnavailableError):
            delay_s = max(delay_s, problem.retry_after_s)
        until_s = monotonic() + delay_s
        if self._give_up_at_s is not None:
            until_s = min(until_s, self._give_up_at_s)
        while (left_s := until_s - monotonic()) > 0:
            if self._pending.nudges != nudges:
                return 1
            self._pending.bell.wait(left_s)
        return attempt + 1


def _reasons(error: Exception, batch: Sequence[Waiting]) -> dict[int, str]:
    """Return why events are refused, by their place in the batch, if the error names them."""
    reasons: dict[int, str] = {}
    if isinstance(error, InvalidInputError):
        for problem in error.problems:
            named = _NAMED.match(problem.field)
            if named and int(named[1]) < len(batch):
                reasons.setdefault(int(named[1]), f"{problem.field}: {problem.reason}")
    return reasons
