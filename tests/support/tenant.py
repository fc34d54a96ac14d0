"""A small business with prices and customers, for tests of the path."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from threading import Barrier
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, text

from metering.buffer.chunk import BufferedEvent, Metadata
from metering.buffer.stream import UsageBuffer
from metering.checkpoint import Checkpoint, no_checkpoint
from metering.clock import to_wire, utc_now
from metering.debit.drain import DrainReport, drain_shard
from metering.debit.resources import Drain
from metering.debit.write import Outcome
from metering.ids import BusinessId, CustomerId
from metering.invariants import Fault
from metering.ledger.businesses import BusinessChange, change_business, create_business
from metering.ledger.customers import NewCustomer, create_customer
from metering.ledger.entry import Entry, LotTerms, Posting, Wallet
from metering.ledger.history import history
from metering.ledger.manual import Entered, ManualEntry, enter
from metering.ledger.post import post
from metering.ledger.wallets import wallet_of
from metering.rate_card.cards import RateCards
from metering.rate_card.catalogue import (
    Aggregation,
    Meter,
    NewMeter,
    NewPrice,
    create_meter,
    create_price,
)
from metering.verify import find_faults
from worker.session import Sessions

CURRENCIES = ("USD", "INR")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NOW = to_wire(datetime.now(UTC))
_ids = count(1)
T = TypeVar("T")


def event(
    customer_id: str,
    metadata: Mapping[str, str | int | float | bool] | None = None,
    *,
    event_id: str | None = None,
    name: str = "llm.completion",
    at: str = NOW,
) -> BufferedEvent:
    """A checked event; ids are unique unless given."""
    given: Metadata = dict(metadata or {"tokens": 1})
    return BufferedEvent(event_id or f"evt-{next(_ids)}", customer_id, name, at, given)


@dataclass
class Shop:
    """One business over a test's database and buffer."""

    sessions: Sessions
    buffer: UsageBuffer
    business_id: BusinessId
    customers: list[CustomerId] = field(default_factory=list)

    @classmethod
    def open(
        cls, sessions: Sessions, buffer: UsageBuffer, customers: int = 1, name: str = "Acme"
    ) -> "Shop":
        with sessions.transaction() as conn:
            shop = cls(sessions, buffer, create_business(conn, name))
            for _ in range(customers):
                shop.add_customer(conn)
        return shop

    def keep_free(self) -> None:
        """Set the policy that keeps usage without a price for free."""
        change = BusinessChange(on_unmetered="keep_free")
        with self.sessions.transaction() as conn:
            change_business(conn, self.business_id, change)

    def add_customer(self, conn: Connection, billing: str | None = None) -> CustomerId:
        new = NewCustomer(email="a@example.com", name="A", billing_currency=billing)
        self.customers.append(create_customer(conn, self.business_id, new, CURRENCIES))
        return self.customers[-1]

    def meter(
        self,
        key: str | None = "tokens",
        prices: Mapping[str, str] | None = None,
        *,
        units: int = 1,
        event_name: str = "llm.completion",
        effective_from: datetime = LONG_AGO,
    ) -> Meter:
        """Make a meter (sum of `key`, or count) with prices by currency; default 0.25 cents."""
        aggregation = Aggregation(type="sum", key=key) if key else Aggregation(type="count")
        new = NewMeter(
            name=key or "calls",
            event_name=event_name,
            measurement_unit="unit",
            aggregation=aggregation,
        )
        with self.sessions.transaction() as conn:
            meter = create_meter(conn, self.business_id, new)
            for currency, price in (prices or {"USD": "0.25", "INR": "21.5"}).items():
                self.price(conn, meter, currency, price, units=units, effective_from=effective_from)
        return meter

    def price(
        self,
        conn: Connection,
        meter: Meter,
        currency: str,
        price: str,
        *,
        units: int = 1,
        effective_from: datetime = LONG_AGO,
    ) -> None:
        new = NewPrice(
            meter_id=meter.meter_id,
            currency=currency,
            price_per_unit=price,
            units=units,
            effective_from=effective_from,
        )
        create_price(conn, self.business_id, new, CURRENCIES)

    def send(self, *events: BufferedEvent) -> None:
        self.buffer.append(self.business_id, events)

    def drain(
        self,
        batch_events: int = 10_000,
        checkpoint: Checkpoint = no_checkpoint,
        sessions: Sessions | None = None,
    ) -> Outcome:
        """Drain all shards to the end; return how many events ended where."""
        total = Outcome()
        for report in self.drain_reports(batch_events, checkpoint, sessions):
            for name in Outcome.__slots__:
                setattr(total, name, getattr(total, name) + getattr(report.outcome, name))
        return total

    def drain_reports(
        self,
        batch_events: int = 10_000,
        checkpoint: Checkpoint = no_checkpoint,
        sessions: Sessions | None = None,
    ) -> list[DrainReport]:
        transaction = (sessions or self.sessions).transaction
        drain = Drain(transaction, self.buffer, RateCards(CURRENCIES), batch_events, checkpoint)
        return [drain_shard(drain, shard, 60) for shard in self.buffer.shards]

    def enter(
        self, amount: int, *, debit: bool = False, currency: str = "USD", customer: int = 0,
        key: str | None = None, reason: str | None = None,
    ) -> Entered:  # fmt: skip
        request = ManualEntry(
            amount=amount,
            currency=currency,
            entry_type="debit" if debit else "credit",
            idempotency_key=key,
            reason=reason,
        )
        with self.sessions.transaction() as conn:
            return enter(conn, self.business_id, self.customers[customer], request)

    def grant(
        self, amount: int, days: float | None = None, customer: int = 0, **terms: object
    ) -> str:
        """Credit a lot with terms and a validity in days; return its id."""
        wallet_id = self.wallet(customer).wallet_id
        expires_at = None if days is None else utc_now() + timedelta(days=days)
        posting = Posting(
            wallet_id=wallet_id,
            kind="manual",
            is_credit=True,
            amount_minor=amount,
            lot_terms=LotTerms(expires_at=expires_at, **terms),  # type: ignore[arg-type]
        )
        with self.sessions.transaction() as conn:
            (entry,) = post(conn, [posting])
        ((lot_id,),) = self.rows(
            f"SELECT lot_id FROM credit_lots WHERE entry_id = '{entry.entry_id}'"
        )
        return str(lot_id)

    def pass_days(self, days: float) -> None:
        """Let days pass for all lots, by moving them into the past."""
        by = f"- make_interval(secs => {days * 86_400})"
        self.run(
            f"UPDATE credit_lots SET expires_at = expires_at {by}, created_at = created_at {by}"
            f" WHERE business_id = '{self.business_id}'"
        )
        self.run(
            f"UPDATE wallets SET lot_until = lot_until {by}"
            f" WHERE business_id = '{self.business_id}'"
        )

    def lots(self, customer: int = 0) -> list[tuple[int, bool]]:
        """The amount left of each lot in USD, oldest first, and whether it is frozen."""
        rows = self.rows(
            "SELECT CASE WHEN w.lot_id = l.lot_id THEN w.lot_left_minor ELSE l.remaining_minor END,"
            " l.frozen_at IS NOT NULL FROM credit_lots l JOIN wallets w USING (wallet_id)"
            f" WHERE w.customer_id = '{self.customers[customer]}' AND currency = 'USD'"
            " ORDER BY l.lot_id"
        )
        return [(int(str(left)), bool(is_frozen)) for left, is_frozen in rows]

    def charge(self, tokens: int, customer: int = 0) -> None:
        """Use tokens and drain. It needs a meter of tokens."""
        self.send(event(self.customers[customer], {"tokens": tokens}))
        assert self.drain().posted == 1

    def wallet(self, customer: int = 0, currency: str = "USD") -> Wallet:
        with self.sessions.transaction() as conn:
            return wallet_of(conn, self.business_id, self.customers[customer], currency)

    def entries(self, customer: int = 0, currency: str = "USD") -> list[Entry]:
        """The wallet's history, newest first."""
        wallet_id = self.wallet(customer, currency).wallet_id
        with self.sessions.transaction() as conn:
            return history(conn, wallet_id, page=1000)

    def charged(self, currency: str = "USD") -> Decimal:
        """The exact cost so far in a currency: debits for usage and remainders of all wallets."""
        rows = self.rows(
            "SELECT coalesce((SELECT sum(amount_minor) FROM ledger_entries WHERE kind = 'usage'"
            f" AND currency = '{currency}'), 0) + coalesce((SELECT sum(remainder) FROM wallets"
            f" WHERE currency = '{currency}'), 0)"
        )
        return Decimal(str(rows[0][0]))

    def faults(self) -> list[Fault]:
        with self.sessions.snapshot() as conn:
            return list(find_faults(conn))

    def run(self, statement: str) -> None:
        with self.sessions.transaction() as conn:
            conn.execute(text(statement))

    def rows(self, statement: str) -> Sequence[tuple[Any, ...]]:
        with self.sessions.transaction() as conn:
            return [tuple(row) for row in conn.execute(text(statement))]


def at_once(*works: Callable[[], T]) -> list[T | Exception]:
    """Run all functions at the same time, each in a thread; return their results or errors."""
    gate = Barrier(len(works))

    def begin(work: Callable[[], T]) -> T | Exception:
        gate.wait(30)
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - the error is part of the result
            return error

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(begin, works))


@contextmanager
def pool_of(sessions: Sessions, connections: int) -> Iterator[Sessions]:
    """Sessions of the same database with this many connections, for real concurrency."""
    engine = create_engine(
        sessions.engine.url,
        pool_size=connections,
        connect_args={"options": "-c timezone=UTC -c lock_timeout=30s"},
    )
    try:
        yield Sessions(engine)
    finally:
        engine.dispose()


@contextmanager
def shared_database(execute: Callable[[str], None], template: str, name: str) -> Iterator[str]:
    """A migrated database for the tests of a module, each of which has a business of its own."""
    execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield name
    execute(f"DROP DATABASE {name} WITH (FORCE)")
