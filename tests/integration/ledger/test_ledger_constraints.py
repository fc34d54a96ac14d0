"""Bad rows written by raw SQL are refused by the database itself, with real commits."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
import pytest

from metering.buffer.stream import UsageBuffer
from metering.db import driver
from metering.payment.manual import PaidOrder, record_paid_order
from metering.purchase.settle import settle_purchase
from support.tenant import Shop, event, shared_database
from worker.context import open_buffer
from worker.session import Sessions, make_engine
from worker.settings import settings_from

NOT_NULL, UNIQUE, CHECK, RESTRICT = "23502", "23505", "23514", "23001"
OUT_OF_RANGE = "22003"
REFERRED_TO = "23001 23503"  # since Postgres 18, and before


@pytest.fixture(scope="module")
def shop(servers: Any) -> Iterator[Shop]:
    """A business with two customers. The tests share it, because every write is refused.

    USD of the first: a credit of 100 (key `first`). INR: usage, remainder 0.5, then a purchase.
    """
    with shared_database(servers.execute, servers.template, "bad_rows") as name:
        urls = {
            "DATABASE_URL": servers.url_of(name),
            "REDIS_URL": servers.credentials.redis_url,
        }
        config = settings_from(urls)
        engine, buffer = make_engine(config), open_buffer(config)
        buffer.redis.flushall()
        yield _furnished(Sessions(engine), buffer)
        buffer.redis.close()
        engine.dispose()


def _furnished(sessions: Sessions, buffer: UsageBuffer) -> Shop:
    shop = Shop.open(sessions, buffer, customers=2)
    shop.meter("tokens", {"INR": "0.5"})
    shop.enter(100, key="first")
    shop.send(event(shop.customers[0], {"tokens": 1}))
    shop.drain()
    order = PaidOrder(order_id="o-1", customer_id=shop.customers[0], currency="INR", paid=70)
    with sessions.transaction() as conn:
        settle_purchase(conn, record_paid_order(conn, shop.business_id, order))
    return shop


def refusal(
    shop: Shop, statement: str, values: Mapping[str, object] | Sequence[object] | None = None
) -> str | None:
    """Write and commit; return the SQLSTATE of the refusal. Returns None if the write succeeded."""
    try:
        with shop.sessions.transaction() as conn:
            driver(conn).execute(statement.encode(), values)
    except psycopg.Error as error:
        return error.sqlstate
    return None


def insert(table: str, row: Mapping[str, object]) -> str:
    names = ", ".join(row)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join(f'%({name})s' for name in row)})"


def state_of(shop: Shop) -> list[object]:
    """The state that no refused write may change."""
    return [
        shop.rows("SELECT wallet_id, balance_minor, version FROM wallets ORDER BY wallet_id"),
        shop.rows("SELECT entry_id, after_minor FROM ledger_entries ORDER BY entry_id"),
    ]


def next_entry(shop: Shop, **changes: object) -> dict[str, object]:
    """A good second entry of the USD wallet: a debit of 10."""
    wallet = shop.wallet()
    return {
        "entry_id": "ent_raw",
        "wallet_id": wallet.wallet_id,
        "version": 2,
        "business_id": wallet.business_id,
        "customer_id": wallet.customer_id,
        "currency": "USD",
        "amount_minor": 10,
        "is_credit": False,
        "before_minor": 100,
        "after_minor": 90,
        "event_type": "merchant_adjustment",
        "kind": "manual",
        "exact_cost": 10,
        "remainder_before": 0,
        "remainder_after": 0,
        "created_at": "2026-01-31T09:30:00Z",
        "chain": b"\1" * 32,
        **changes,
    }


def usage_entry(shop: Shop, **changes: object) -> dict[str, object]:
    """A good third entry of the INR wallet: usage of 1.75 on a remainder of 0.5."""
    wallet = shop.wallet(currency="INR")
    ((batch_id,),) = shop.rows("SELECT batch_id FROM usage_batches")
    return next_entry(
        shop,
        **{
            "wallet_id": wallet.wallet_id,
            "version": 3,
            "currency": "INR",
            "amount_minor": 2,
            "before_minor": 70,
            "after_minor": 68,
            "kind": "usage",
            "batch_id": batch_id,
            "event_count": 1,
            "exact_cost": "1.75",
            "remainder_before": "0.5",
            "remainder_after": "0.25",
            **changes,
        },
    )


@pytest.mark.parametrize("entry", [next_entry, usage_entry])
def test_the_row_before_its_damage_is_valid(shop: Shop, entry: Any) -> None:
    row = entry(shop)

    with shop.sessions.transaction() as conn:
        driver(conn).execute(insert("ledger_entries", row).encode(), row)
        conn.rollback()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET amount_minor = amount_minor + 1, after_minor = after_minor + 1",
        "UPDATE ledger_entries SET reason = 'other'",
        "UPDATE ledger_entries SET reason = 'other' WHERE false",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries CASCADE",
        "TRUNCATE wallets CASCADE",
        (
            "MERGE INTO ledger_entries e USING wallets w ON w.wallet_id = e.wallet_id"
            " WHEN MATCHED THEN DELETE"
        ),
    ],
)
def test_an_entry_cannot_be_changed_or_deleted(shop: Shop, statement: str) -> None:
    before = state_of(shop)

    assert refusal(shop, statement) == RESTRICT
    assert state_of(shop) == before


BAD_ENTRIES: dict[str, tuple[str, dict[str, object]]] = {
    "a wrong after": (CHECK, {"after_minor": 91}),
    "a credit that lowers the balance": (CHECK, {"is_credit": True}),
    "a gap in the versions": (CHECK, {"version": 3}),
    "version zero": (CHECK, {"version": 0}),
    "a second version 1": (UNIQUE, {"version": 1, "before_minor": 0, "after_minor": -10}),
    "another before": (CHECK, {"before_minor": 99, "after_minor": 89}),
    "another remainder before": (CHECK, {"remainder_before": "0.5", "remainder_after": "0.5"}),
    "an amount of zero": (CHECK, {"amount_minor": 0, "after_minor": 100}),
    "an amount below zero": (CHECK, {"amount_minor": -10, "after_minor": 110}),
    "an amount beyond 64 bits": (OUT_OF_RANGE, {"amount_minor": 2**63}),
    "no amount": (NOT_NULL, {"amount_minor": None}),
    "a cost below zero": (CHECK, {"exact_cost": -1}),
    "a cost that is no number": (CHECK, {"exact_cost": "NaN"}),
    "an infinite cost": (CHECK, {"exact_cost": "Infinity"}),
    "a remainder moved by hand": (CHECK, {"remainder_after": "0.1"}),
    "an unknown event type": (CHECK, {"event_type": "gift"}),
    "a batch where there is no usage": (CHECK, {"batch_id": 1}),
    "a key without its digest": (CHECK, {"idempotency_key": "k"}),
    "a digest without its key": (CHECK, {"request_digest": b"d"}),
    "a used idempotency key": (UNIQUE, {"idempotency_key": "first", "request_digest": b"d"}),
    "a chain of another length": (CHECK, {"chain": b"\1" * 31}),
    "an unknown wallet": (
        CHECK,
        {"wallet_id": "wal_nobody", "version": 1, "before_minor": 0, "after_minor": -10},
    ),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_an_entry_is_refused_with(shop: Shop, case: str) -> None:
    sqlstate, changes = BAD_ENTRIES[case]
    row, before = next_entry(shop, **changes), state_of(shop)

    assert refusal(shop, insert("ledger_entries", row), row) == sqlstate
    assert state_of(shop) == before


BAD_USAGE: dict[str, tuple[str, dict[str, object]]] = {
    "a remainder of one": (CHECK, {"amount_minor": 1, "after_minor": 69, "remainder_after": 1}),
    "a remainder below zero": (
        CHECK,
        {"amount_minor": 3, "after_minor": 67, "remainder_after": "-0.75"},
    ),
    "a remainder that is no number": (CHECK, {"remainder_after": "NaN"}),
    "a part of a unit lost": (CHECK, {"remainder_after": "0.24"}),
    "a part of a unit taken twice": (CHECK, {"amount_minor": 3, "after_minor": 67}),
    "no batch": (CHECK, {"batch_id": None}),
    "an unknown batch": (CHECK, {"batch_id": 10**9}),
    "fewer than no events": (CHECK, {"event_count": -1}),
}


@pytest.mark.parametrize("case", BAD_USAGE)
def test_an_entry_of_usage_is_refused_with(shop: Shop, case: str) -> None:
    sqlstate, changes = BAD_USAGE[case]
    row = usage_entry(shop, **changes)

    assert refusal(shop, insert("ledger_entries", row), row) == sqlstate


def test_an_entry_id_is_used_once(shop: Shop) -> None:
    row = next_entry(shop, entry_id=shop.entries()[0].entry_id)

    assert refusal(shop, insert("ledger_entries", row), row) == UNIQUE


def test_a_purchase_is_credited_once(shop: Shop) -> None:
    ((purchase_id,),) = shop.rows("SELECT purchase_id FROM purchases")
    row = next_entry(shop, kind="purchase", is_credit=True, after_minor=110, reference=purchase_id)

    assert refusal(shop, insert("ledger_entries", row), row) == UNIQUE


def test_a_copy_is_checked_like_an_insert(shop: Shop) -> None:
    row = {**next_entry(shop, version=3), "chain": "\\x" + "01" * 32}
    statement = f"COPY ledger_entries ({', '.join(row)}) FROM STDIN"

    def copy() -> None:
        with (
            shop.sessions.transaction() as conn,
            driver(conn).cursor() as cursor,
            cursor.copy(statement.encode()) as lines,
        ):
            lines.write_row(list(row.values()))

    with pytest.raises(psycopg.errors.CheckViolation):
        copy()


def test_the_second_of_two_entries_in_a_statement_continues_the_first(shop: Shop) -> None:
    pair = [
        next_entry(shop),
        next_entry(shop, entry_id="ent_raw2", version=3, before_minor=100, after_minor=90),
    ]
    places = ", ".join(["%s"] * len(pair[0]))
    statement = f"INSERT INTO ledger_entries ({', '.join(pair[0])}) VALUES ({places}), ({places})"

    found = refusal(shop, statement, [value for row in pair for value in row.values()])

    assert found == CHECK


BAD_STATEMENTS: dict[str, tuple[str, str]] = {
    "a wallet's currency in lower case": (CHECK, "UPDATE wallets SET currency = 'usd'"),
    "a wallet's currency of two letters": (CHECK, "UPDATE wallets SET currency = 'US'"),
    "a wallet's remainder of one": (CHECK, "UPDATE wallets SET remainder = 1 WHERE version > 0"),
    "a wallet's remainder below zero": (CHECK, "UPDATE wallets SET remainder = -0.1"),
    "a wallet's remainder that is no number": (CHECK, "UPDATE wallets SET remainder = 'NaN'"),
    "a wallet's version below zero": (CHECK, "UPDATE wallets SET version = -1"),
    "a balance without an entry": (CHECK, "UPDATE wallets SET balance_minor = 5 WHERE version = 0"),
    "a version without a chain": (CHECK, "UPDATE wallets SET version = 1 WHERE version = 0"),
    "a chain without a version": (CHECK, "UPDATE wallets SET version = 0 WHERE version > 0"),
    "an overdraft limit below zero": (CHECK, "UPDATE wallets SET overdraft_limit_minor = -1"),
    "a second wallet in a currency": (
        UNIQUE,
        (
            "INSERT INTO wallets (wallet_id, business_id, customer_id, currency)"
            " SELECT 'wal_raw', business_id, customer_id, currency FROM wallets LIMIT 1"
        ),
    ),
    "a wallet of nobody": (
        "23503",
        (
            "INSERT INTO wallets (wallet_id, business_id, customer_id, currency)"
            " SELECT 'wal_raw', business_id, 'cus_nobody', 'USD' FROM businesses"
        ),
    ),
    "a wallet with entries deleted": (REFERRED_TO, "DELETE FROM wallets WHERE version > 0"),
    "a customer with wallets deleted": (REFERRED_TO, "DELETE FROM customers"),
    "a business with customers deleted": (REFERRED_TO, "DELETE FROM businesses"),
    "an event charged twice": (
        UNIQUE,
        (
            "INSERT INTO usage_event_keys SELECT event_key, payload_digest + 1, batch_id"
            " FROM usage_event_keys"
        ),
    ),
    "a batch with more unmetered than posted events": (
        CHECK,
        "UPDATE usage_batches SET unmetered_count = posted_count + 1",
    ),
    "a kept event of a cost below zero": (CHECK, "UPDATE usage_events SET cost_minor = -1"),
    "a kept event of a cost that is no number": (
        CHECK,
        "UPDATE usage_events SET cost_minor = 'NaN'",
    ),
    "an account of a shard that does not add up": (
        CHECK,
        "UPDATE drain_cursors SET settled_count = settled_count + 1",
    ),
    "a price below zero": (CHECK, "UPDATE prices SET price_per_unit = -1"),
    "a price that is no number": (CHECK, "UPDATE prices SET price_per_unit = 'NaN'"),
    "a price per no units": (CHECK, "UPDATE prices SET units = 0"),
    "two prices from the same moment": (
        UNIQUE,
        (
            "INSERT INTO prices (price_id, business_id, meter_id, currency, price_per_unit,"
            " effective_from) SELECT 'prc_raw', business_id, meter_id, currency, 1, effective_from"
            " FROM prices"
        ),
    ),
    "a sum of nothing": (CHECK, "UPDATE meters SET aggregation_key = NULL"),
    "an aggregation that is no sum": (CHECK, "UPDATE meters SET aggregation_type = 'max'"),
    "an order recorded twice": (
        UNIQUE,
        (
            "INSERT INTO purchases (purchase_id, business_id, customer_id, currency, order_id,"
            " price_minor, credit_minor) SELECT 'pur_raw', business_id, customer_id,"
            " currency, order_id, price_minor, credit_minor FROM purchases"
        ),
    ),
    "a purchase credited without an entry": (CHECK, "UPDATE purchases SET entry_id = NULL"),
    "a purchase paid with less than nothing": (CHECK, "UPDATE purchases SET paid_minor = -1"),
    "a purchase that credits nothing": (CHECK, "UPDATE purchases SET credit_minor = 0"),
    "a purchase in an unknown state": (CHECK, "UPDATE purchases SET status = 'maybe'"),
    "an empty band": (
        CHECK,
        (
            "INSERT INTO low_credit_rules (rule_id, business_id, currency, threshold_minor,"
            " recover_at_minor) SELECT 'rul_raw', business_id, 'USD', 5, 5 FROM businesses"
        ),
    ),
    "two alerts of one number": (
        UNIQUE,
        (
            "INSERT INTO webhook_events (webhook_event_id, business_id, type, wallet_id, sequence,"
            " data, occurred_at) SELECT 'msg_' || n, business_id, 'credit.balance_low', wallet_id,"
            " 1, '{}', now() FROM wallets, generate_series(1, 2) n WHERE wallet_id = ("
            "SELECT min(wallet_id) FROM wallets)"
        ),
    ),
}


@pytest.mark.parametrize("case", BAD_STATEMENTS)
def test_the_database_refuses(shop: Shop, case: str) -> None:
    sqlstate, statement = BAD_STATEMENTS[case]
    before = state_of(shop)

    assert refusal(shop, statement) in sqlstate.split()
    assert state_of(shop) == before
