"""The thread that carries recorded events to Redis: in order, again and again, same ids."""

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
LEAVING_POLL_S: Final = 0.02

log = logging.getLogger("metering.accept")


@dataclass(frozen=True, slots=True)
class Link:
    """A connection to the buffer: `UsageBuffer.append`, `Quantities.summed`, and its end."""

    append: Callable[[BusinessId, Sequence[BufferedEvent]], None]
    summed: Callable[[BusinessId], SummedProperties]
    close: Callable[[], None]


class Rarely:
    """True once per `WARN_PERIOD_S`: a warning per event would be an outage of its own."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self) -> bool:
        """Tell whether a period has passed since it last was True."""
        if (now := monotonic()) < self._next_s:
            return False
        self._next_s = now + WARN_PERIOD_S
        return True


class Sender:
    """One daemon thread over one `Pending`; started by the first event, ended by `finish`."""

    def __init__(
        self,
        pending: Pending,
        business_id: BusinessId,
        connect: Callable[[], Link],
        on_through: Callable[[], None],
    ) -> None:
        self.summed: SummedProperties = {}
        self._pending = pending
        self._business_id = business_id
        self._connect = connect
        self._on_through = on_through
        self._link: Link | None = None
        self._thread: Thread | None = None
        self._leaving_with = 0  # events that were recorded before the end began
        self._give_up_at_s: float | None = None
        self._failing = Rarely()

    def ensure_started(self) -> bool:
        """Start the thread if this process has none yet; return whether this call did."""
        return self._thread is None and self._start_once()

    def _start_once(self) -> bool:
        with self._pending.lock:
            if self._thread is not None:
                return False
            thread = Thread(target=self._run, name="gullak-meter", daemon=True)
            thread.start()  # where the system refuses a thread, the next event asks again
            self._thread = thread
            return True

    def finish(self, timeout_s: float, answer_s: float) -> None:
        """Send what is pending for up to `timeout_s`, give up the rest, end the thread.

        A send that is under way may take `answer_s` more.
        """
        self._pending.shut()
        self.hurry(timeout_s)
        if self._thread is not None:
            self._thread.join(timeout_s + answer_s)

    def hurry(self, timeout_s: float) -> None:
        """Send everything now, and give it up after `timeout_s`. Takes no lock."""
        self._leaving_with = self._pending.request_flush()
        self._give_up_at_s = monotonic() + timeout_s
        self._pending.bell.ring()

    def is_through(self) -> bool:
        """Tell whether what was there at `hurry` is sent, or its time is over. Takes no lock.

        Not whether nothing is pending: other threads may record until the very end.
        """
        return self._pending.is_settled(self._leaving_with) or self._is_out_of_time()

    def _is_out_of_time(self) -> bool:
        return self._give_up_at_s is not None and monotonic() >= self._give_up_at_s

    def _run(self) -> None:
        self._learn()
        while not (self._pending.is_shut and self._pending.is_empty()):
            due_in_s = self._pending.due_in_s()
            if self._give_up_at_s is not None:
                due_in_s = 0.0 if due_in_s is not None else LEAVING_POLL_S
                if self.is_through():
                    self._on_through()
            if due_in_s is not None and due_in_s <= 0:
                self._send(self._pending.take())
            else:
                self._pending.bell.wait(due_in_s)
        if self._link is not None:
            self._link.close()

    def _linked(self) -> Link:
        if self._link is None:
            self._link = self._connect()
        return self._link

    def _learn(self) -> None:
        """Look up what meters sum, so that `record` refuses what could only be dead-lettered."""
        with suppress(Exception):  # a courtesy: the thread must outlive whatever it meets
            self.summed = self._linked().summed(self._business_id)

    def _send(self, batch: list[Waiting]) -> None:
        """Bring one batch to an end: sent, found unsendable, or given up when closing."""
        attempt = 0
        # Counted before each attempt: a flush that is asked for while one fails is not missed.
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
        """Send once; return why it may go better later, or None: nothing is left to do."""
        try:
            self._linked().append(self._business_id, [waiting.event for waiting in batch])
        except (InvalidInputError, TypeError, ValueError) as error:
            self._part_from_culprit(batch, error)
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever it meets
            self._note_failure(error)
            return error
        else:
            self._pending.settle(batch, "sent")
            self._learn()
        return None

    def _note_failure(self, error: Exception) -> None:
        self._pending.note_retry(error)
        if self._failing():
            pending = self._pending.stats().pending
            log.warning("usage is kept and sent later: %d events pending: %s", pending, error)

    def _part_from_culprit(self, batch: list[Waiting], error: Exception) -> None:
        """Send each alone: one event that cannot be written must not hold up the others."""
        if len(batch) > 1:
            for waiting in batch:
                self._send([waiting])
            return
        log.error("event %r cannot be sent: %s", batch[0].event.event_id, error)
        self._pending.settle(batch, "unsendable")

    def _give_up(self, batch: list[Waiting], problem: Exception) -> None:
        """Count what closing leaves behind; with only the answer lost, it is in Redis after all."""
        lost = 0
        while batch:
            lost += len(batch)
            self._pending.settle(batch, "dropped")
            batch = self._pending.take()
        log.error("%d usage events were given up while closing: %s", lost, problem)

    def _back_off(self, attempt: int, problem: Exception, nudges: int) -> int:
        """Wait with jitter, or until more than `nudges` flushes were asked for.

        Returns the next attempt's number.
        """
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
