"""For the benchmarks: durable servers of their own, a business, customers, traffic."""

import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import text
from ulid import ULID

from metering.buffer.chunk import BufferedEvent
from metering.buffer.stream import UsageBuffer
from metering.clock import to_wire, utc_now
from metering.ids import BusinessId, Currency, CustomerId, WalletId
from metering.ledger.businesses import create_business
from metering.ledger.customers import NewCustomer, create_customer
from metering.ledger.entry import Posting
from metering.ledger.post import post
from metering.low_credit.rules import set_rule
from metering.rate_card.catalogue import (
    Aggregation,
    NewMeter,
    NewPrice,
    create_meter,
    create_price,
)
from metering.usage.partitions import maintain_partitions
from worker.context import open_buffer
from worker.local.embedded import open_credentials, postgres_role, redis_role
from worker.local.files import lock_data_dir
from worker.local.supervisor import Supervisor
from worker.migrate import migrate_database
from worker.session import Sessions, make_engine
from worker.settings import Settings, settings_from

CURRENCIES = ("USD", "INR")
CHUNK_EVENTS = 1000  # one producer flush
LOTS_PER_WALLET = 3
MINOR_PER_EVENT = 0.144  # average cost of an event of `Market.events`
SMALLEST_LOT_MINOR = 50  # the smallest charge of Stripe in USD: nobody buys less credit


@dataclass
class Bed:
    """Servers and connections of one run."""

    config: Settings
    sessions: Sessions
    buffer: UsageBuffer

    def query(self, statement: str) -> Sequence[tuple[Any, ...]]:
        with self.sessions.transaction() as conn:
            return [tuple(row) for row in conn.execute(text(statement))]

    def tidy(self, tables: str) -> None:
        """Vacuum and checkpoint now, so that neither happens during the next measurement."""
        url = self.config.database_url.get_secret_value()
        with psycopg.connect(url, autocommit=True) as maintenance:
            maintenance.execute(f"VACUUM ANALYZE {tables}")
            maintenance.execute("CHECKPOINT")


@contextmanager
def bed() -> Iterator[Bed]:
    """Start Postgres (fsync on) and Redis (append-only file on) in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="gullak-bench-"))
    supervisor = Supervisor()
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        cleanup.enter_context(lock_data_dir(folder))
        cleanup.callback(supervisor.close)
        credentials = open_credentials(folder)
        supervisor.start(
            [postgres_role(folder, credentials), redis_role(folder, credentials, "everysec")]
        )
        urls = {"DATABASE_URL": credentials.database_url, "REDIS_URL": credentials.redis_url}
        config = settings_from({**urls, "GULLAK_HIGH_WATER_EVENTS": "100000000"})
        migrate_database(config)
        engine = make_engine(config)
        cleanup.callback(engine.dispose)
        buffer = open_buffer(config)
        cleanup.callback(buffer.redis.close)
        servers = Bed(config, Sessions(engine), buffer)
        with servers.sessions.transaction() as conn:
            maintain_partitions(conn, ahead_days=2, retention_days=90)
        yield servers


def _lot(wallet_id: WalletId, amount_minor: int) -> Posting:
    return Posting(wallet_id=wallet_id, kind="manual", is_credit=True, amount_minor=amount_minor)


@dataclass
class Market:
    """A business with an LLM-like price list, customers, and a default alert rule per currency."""

    bed: Bed
    business_id: BusinessId
    customers: list[CustomerId]
    is_funded: bool = False

    @classmethod
    def open(cls, servers: Bed, customers: int) -> "Market":
        with servers.sessions.transaction() as conn:
            business_id = create_business(conn, f"{customers} customers")
            for key, price in (("input_tokens", "0.03"), ("output_tokens", "0.06")):
                aggregation = Aggregation(type="sum", key=key)
                meter = create_meter(
                    conn,
                    business_id,
                    NewMeter(
                        name=key,
                        event_name="llm.completion",
                        measurement_unit="token",
                        aggregation=aggregation,
                    ),
                )
                for currency in CURRENCIES:
                    new = NewPrice(
                        meter_id=meter.meter_id,
                        currency=currency,
                        price_per_unit=price,
                        units=1000,
                        effective_from=datetime(2020, 1, 1, tzinfo=UTC),
                    )
                    create_price(conn, business_id, new, CURRENCIES)
            for currency in CURRENCIES:
                set_rule(conn, business_id, Currency(currency), -1_000_000)
            made = [
                create_customer(
                    conn, business_id, NewCustomer(email="a@example.com", name="A"), CURRENCIES
                )
                for _ in range(customers)
            ]
        servers.tidy("customers, wallets")
        return cls(servers, business_id, made)

    def events(self, count: int, hot_share: float = 0.0) -> list[BufferedEvent]:
        """Traffic over the customers; a share of it may fall on the first."""
        now = to_wire(utc_now())
        return [
            BufferedEvent(
                str(ULID()),
                self.customers[0] if random.random() < hot_share else random.choice(self.customers),  # noqa: S311
                "llm.completion",
                now,
                {
                    "input_tokens": random.randint(1, 8000),  # noqa: S311
                    "model": "large",
                    "output_tokens": random.randint(1, 800),  # noqa: S311
                },
            )
            for _ in range(count)
        ]

    def fund(self, count: int, hot_share: float = 0.0) -> None:
        """Give every wallet several lots at first, then one for each that `count` events consume.

        A lot lasts for the wallet's share of the events, but is at least the smallest purchase. The
        first lot is partly used, so that the lots of the wallets do not end at the same time.
        """
        with self.bed.sessions.transaction() as conn:
            rows = conn.execute(
                text("SELECT wallet_id FROM wallets WHERE business_id = :b AND currency = :c"
                     " ORDER BY customer_id = :hot DESC"),
                {"b": self.business_id, "c": CURRENCIES[0], "hot": self.customers[0]},
            )  # fmt: skip
            wallet_ids = list(rows.scalars())
            share = count * (1 - hot_share) / len(wallet_ids)
            expected = [share + count * hot_share, *[share] * (len(wallet_ids) - 1)]
            postings = [
                _lot(wallet_id, amount_minor)
                for wallet_id, events in zip(wallet_ids, expected, strict=True)
                for amount_minor in self._lots(1 + int(events * MINOR_PER_EVENT))
            ]
            post(conn, postings)
            conn.execute(text("DELETE FROM webhook_events"))
        self.is_funded = True
        self.bed.tidy("wallets, credit_lots, ledger_entries, webhook_events")

    def _lots(self, consumed_minor: int) -> list[int]:
        """Return the lots of a wallet that will consume about this much."""
        size = max(consumed_minor, SMALLEST_LOT_MINOR)
        if not self.is_funded:
            return [random.randint(1, size), *[size] * (LOTS_PER_WALLET - 1)]  # noqa: S311
        return [size] if random.random() < consumed_minor / size else []  # noqa: S311

    def fill(self, count: int, hot_share: float = 0.0) -> None:
        """Buffer `count` events, in chunks as producers send them."""
        for _ in range(0, count, CHUNK_EVENTS):
            self.bed.buffer.append(self.business_id, self.events(CHUNK_EVENTS, hot_share))
