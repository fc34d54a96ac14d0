"""Several customers in both currencies, their traffic, and the expected cost of each event."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count, islice
from queue import SimpleQueue
from threading import Event, Thread
from typing import Self

import psutil

from metering.accept import Meter
from metering.buffer.chunk import BufferedEvent
from metering.buffer.shard import shard_of
from metering.buffer.stream import UsageBuffer
from metering.ids import Currency, CustomerId
from metering.low_credit.rules import set_rule
from support.invariants import Attempts, broken, buffered
from support.tenant import Shop, event
from worker.session import Sessions

PRICES = {"USD": "3.7", "INR": "302.5"}
UNITS = 10
CREDIT = {"USD": 30, "INR": 2500}
THRESHOLD = {"USD": 18, "INR": 1500}
RECOVERED_WITHIN_S = 30
CUSTOMERS = 12


def wait_for(condition: Callable[[], object], within_s: float = RECOVERED_WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process and its children; continue them at the end in any case."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@dataclass
class Workload:
    """A business with customers, their traffic, and a record of it."""

    shop: Shop
    attempts: Attempts = field(default_factory=Attempts)

    def __post_init__(self) -> None:
        self._events = self._traffic()

    @classmethod
    def open(cls, sessions: Sessions, buffer: UsageBuffer) -> "Workload":
        """Half of the customers pay in USD, half in INR; all start above their threshold."""
        shop = Shop.open(sessions, buffer, customers=0)
        with sessions.transaction() as conn:
            for number in range(CUSTOMERS):
                shop.add_customer(conn, billing=_currency(number))
        shop.meter("tokens", PRICES, units=UNITS)
        workload = cls(shop)
        workload.top_up()
        with sessions.transaction() as conn:
            for currency, threshold in THRESHOLD.items():
                set_rule(conn, shop.business_id, Currency(currency), threshold)
        return workload

    def top_up(self) -> None:
        for number in range(CUSTOMERS):
            currency = _currency(number)
            self.shop.enter(CREDIT[currency], currency=currency, customer=number)

    def events(self, number: int) -> list[BufferedEvent]:
        """The next events of the traffic, recorded as attempted."""
        return list(islice(self._events, number))

    def send(self, number: int, chunk: int = 12) -> None:
        """Append traffic in chunks and record each as acked."""
        while number > 0:
            made = self.events(min(chunk, number))
            self.shop.send(*made)
            self.attempts.acked |= {each.event_id for each in made}
            number -= chunk

    def _traffic(self) -> Iterator[BufferedEvent]:
        """Every customer in turn; some events come twice, some have no customer.

        Those share the shard of a customer: a shard of refused events alone has nothing to copy.
        """
        last, stranger_id = None, self._stranger_id()
        for number in count():
            if number % 11 == 10 and last is not None:
                yield last
            if number % 17 == 16:
                stranger = event(stranger_id)
                self.attempts.bad.add(stranger.event_id)
                yield stranger
            who, tokens = number % CUSTOMERS, number * 7 % 9 + 1
            last = event(self.shop.customers[who], {"tokens": tokens})
            currency = _currency(who)
            cost = Decimal(PRICES[currency]) * tokens / UNITS
            self.attempts.costs[last.event_id] = (currency, cost)
            yield last

    def _stranger_id(self) -> CustomerId:
        business_id, shards = self.shop.business_id, len(self.shop.buffer.shards)
        wanted = shard_of(business_id, self.shop.customers[0], shards)
        ids = (CustomerId(f"cus_nobody{number}") for number in count())
        return next(id_ for id_ in ids if shard_of(business_id, id_, shards) == wanted)

    # --- results ----------------------------------------------------------------------------

    def batches(self) -> int:
        return self._number("SELECT count(*) FROM usage_batches")

    def counted(self, column: str) -> int:
        return self._number(f"SELECT coalesce(sum({column}), 0) FROM usage_batches")

    def alerts(self) -> int:
        return self._number("SELECT count(*) FROM webhook_events WHERE sequence > 0")

    def waiting(self) -> int:
        """How many sessions wait for a lock."""
        return self._number(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )

    def has_ended(self, event_id: str) -> bool:
        return bool(
            self._number(
                f"SELECT (SELECT count(*) FROM usage_events WHERE event_id = '{event_id}')"
                f" + (SELECT count(*) FROM refused_events WHERE event_id = '{event_id}')"
            )
        )

    def _number(self, statement: str) -> int:
        ((number,),) = self.shop.rows(statement)
        return int(str(number))

    def is_drained(self) -> bool:
        return buffered(self.shop.buffer) == 0

    def wait_drained(self) -> None:
        wait_for(self.is_drained)

    def broken(self) -> list[str]:
        return broken(self.shop, self.attempts)


def _currency(number: int) -> str:
    return ("USD", "INR")[number % 2]


class Producer:
    """Steady traffic of a workload through a `Meter`, as from a product."""

    def __init__(self, workload: Workload, redis_url: str) -> None:
        self._workload = workload
        self._meter = Meter(
            redis_url,
            workload.shop.business_id,
            durability="strict",
            flush_interval_s=0.05,
            handle_sigterm=False,
        )
        self._stop = Event()
        self._thread = Thread(target=self._run, name="producer")
        self._recorded: SimpleQueue[str] = SimpleQueue()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._meter.close()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            for made in self._workload.events(10):
                self._meter.record(
                    made.event_name,
                    made.customer_id,
                    event_id=made.event_id,
                    timestamp=made.event_at,
                    metadata=made.metadata,
                )
                self._recorded.put(made.event_id)

    def recorded(self) -> str:
        """Return the id of an event that is recorded from now on."""
        while not self._recorded.empty():
            self._recorded.get()
        return self._recorded.get(timeout=RECOVERED_WITHIN_S)

    def finish(self) -> None:
        """End the traffic. Fails unless everything that was recorded is acked."""
        self._stop.set()
        self._thread.join()
        assert self._meter.flush(RECOVERED_WITHIN_S)
        assert (self._meter.stats.dropped, self._meter.stats.unsendable) == (0, 0)
        self._workload.attempts.acked |= self._workload.attempts.ids
