"""Frequent statements and lists do not read more rows as the tables grow."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import TextClause, text

from metering.copy_format import array
from metering.ledger import statements as of_ledger
from metering.ledger.lots import statements as of_lots
from metering.low_credit import statements as of_alerts
from metering.payment import statements as of_payments
from metering.payment.charges import statements as of_charges
from metering.purchase import statements as of_purchases
from support.checkout_driver import CheckoutDriver
from support.tenant import Shop, shared_database
from worker.session import Sessions

ROWS = 5_000
WALLETS = 20_000
MOVED = 600
PAGE = {"page": 10, "offset": 0, "after": None}
PAYMENT = {
    "provider": "stripe",
    "payment_id": "pay_x7",
    "status": "succeeded",
    "amount_minor": 5,
    "currency": "USD",
    "purchase_id": None,
    "charge_id": None,
    "failure": None,
    "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
}
EVENTS = {"status": None, "payment_id": None, **PAGE}
APPLIED = {"provider": "stripe", "unclear": "unclear_amount"}
REPLAY = {"payment_id": None, "before": None, "replay_max": 100}


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here, filled once."""
    with shared_database(servers.execute, servers.template, "money_plans") as name:
        yield servers.url_of(name)


@pytest.fixture
def full_business(shop: Shop) -> str:
    """A business that has rows in every table."""
    if shop.rows("SELECT 1 FROM purchases LIMIT 1") == []:
        _fill(CheckoutDriver(Shop.open(shop.sessions, shop.buffer)))
    ((business_id,),) = shop.rows("SELECT business_id FROM purchases LIMIT 1")
    return str(business_id)


def _fill(driver: CheckoutDriver) -> None:
    whose = f"'{driver.shop.business_id}', '{driver.shop.customers[0]}'"
    wallet_id = driver.shop.wallet().wallet_id
    purchases = (
        "INSERT INTO purchases (purchase_id, business_id, customer_id, currency, order_id,"
        f" price_minor, credit_minor) SELECT 'pur_x' || i, {whose}, 'USD', 'o' || i, 5, 5"
    )
    charges = (
        "INSERT INTO charges (charge_id, business_id, customer_id, account_id, purchase_id,"
        " amount_minor, currency, status, payment_id, due_at)"
        f" SELECT 'chg_x' || i, {whose}, '{driver.account_id}', 'pur_x' || i, 5, 'USD', 'pending',"
        " 'pay_x' || i, now() + make_interval(days => i)"
    )
    events = (
        "INSERT INTO provider_events (business_id, account_id, provider, provider_event_id, body,"
        f" status, payment_id) SELECT '{driver.shop.business_id}', '{driver.account_id}', 'stripe',"
        " 'evt_' || i, '', 'applied', 'pay_x' || i"
    )
    lots = (
        "INSERT INTO credit_lots (lot_id, wallet_id, business_id, source, priority, amount_minor,"
        f" remaining_minor, expires_at, created_at) SELECT 'lot_x' || i, '{wallet_id}',"
        f" '{driver.shop.business_id}', 'manual', 50, 5, 5, now() + make_interval(days => i), now()"
    )
    for statement in (purchases, charges, events, lots):
        driver.shop.run(f"{statement} FROM generate_series(1, {ROWS}) i")
    driver.shop.run("ANALYZE purchases, charges, provider_events, credit_lots")


@pytest.fixture
def many_wallets(full_business: str, shop: Shop) -> list[str]:
    """Some of the wallets of a business that has many, each with a lot."""
    if shop.rows("SELECT 1 FROM wallets WHERE wallet_id = 'wal_many1'") == []:
        series = f"FROM generate_series(1, {WALLETS}) i"
        whose = f"'cus_many' || i, '{full_business}'"
        shop.run(
            "INSERT INTO customers (customer_id, business_id, email, name)"
            f" SELECT {whose}, 'a@example.com', 'A' {series}"
        )
        shop.run(
            "INSERT INTO wallets (wallet_id, customer_id, business_id, currency)"
            f" SELECT 'wal_many' || i, {whose}, 'USD' {series}"
        )
        shop.run(
            "INSERT INTO credit_lots (lot_id, wallet_id, business_id, source, priority,"
            " amount_minor, remaining_minor, created_at) SELECT 'lot_many' || i, 'wal_many' || i,"
            f" '{full_business}', 'manual', 50, 5, 5, now() {series}"
        )
        shop.run("ANALYZE wallets, credit_lots")
    return [f"wal_many{number}" for number in range(1, WALLETS, WALLETS // MOVED)]


def test_debiting_a_batch_reads_only_its_wallets(
    many_wallets: list[str], sessions: Sessions
) -> None:
    count = len(many_wallets)
    values: dict[str, object] = {
        **{field: array([0] * count) for field in of_ledger.MOVED},
        "now": datetime.now(UTC),
        "wallet_id": array(many_wallets),
        "version": array([1] * count),
        "chain": array([bytes(32)] * count),
    }

    assert rows_read(sessions, of_ledger.MOVE_WALLETS, values) < 2 * MOVED


def test_ending_the_lots_of_a_batch_reads_only_its_lots(
    many_wallets: list[str], sessions: Sessions
) -> None:
    values: dict[str, object] = {
        "wallet_id": array(many_wallets),
        "lot_id": array([name.replace("wal", "lot") for name in many_wallets]),
        "remaining_minor": array([0] * len(many_wallets)),
    }

    assert rows_read(sessions, of_lots.LEAVE_IN_LOTS, values) < 2 * MOVED


def test_finding_the_alerts_of_a_batch_reads_only_its_wallets(
    many_wallets: list[str], sessions: Sessions
) -> None:
    values: dict[str, object] = {"wallet_ids": array(many_wallets)}

    assert rows_read(sessions, of_alerts.CROSSINGS, values) < 3 * MOVED


def rows_read(sessions: Sessions, statement: TextClause, values: dict[str, object]) -> float:
    """Run a statement, roll it back, and return how many table rows it has read."""
    with sessions.engine.connect() as conn:
        query = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}")
        ((found,),) = conn.execute(query, values).scalars().all()
    return _read(found["Plan"])


def _read(node: dict[str, Any]) -> float:
    below = sum(_read(child) for child in node.get("Plans", ()))
    if "Relation Name" not in node or "Scan" not in node["Node Type"]:
        return below
    passed_over = (node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    return float(below + (node["Actual Rows"] + sum(passed_over)) * node["Actual Loops"])


def name_of(given: object) -> str:
    return " ".join(given.text.split()[:6]) if isinstance(given, TextClause) else ""


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (of_payments.NOTE_PAYMENT, PAYMENT),
        (of_payments.NOTE_PAYMENT, {**PAYMENT, "charge_id": "chg_x9"}),
        (of_purchases.DUE, {"page": 10}),
        (of_purchases.EXPIRED, {"page": 10}),
        (of_purchases.NOTE_EXPIRING, {"page": 10, "days_ahead": [3, 1]}),
        (of_charges.DUE_CHARGES, {"page": 10}),
        (of_payments.WAITING, {"page": 10}),
        (of_payments.EVENT_PAGE, {**EVENTS, "status": "failed"}),
        (of_payments.EVENT_PAGE, {**EVENTS, "payment_id": "pay_x7"}),
        (of_payments.REPLAY_OPEN, REPLAY),
        (of_payments.REPLAY_OPEN, {**REPLAY, "payment_id": "pay_x7"}),
        (of_payments.APPLY_PARKED, {**APPLIED, "payment_id": "pay_x7"}),
    ],
    ids=name_of,
)
def test_finding_few_rows_among_many_reads_few(
    statement: TextClause, values: dict[str, object], full_business: str, sessions: Sessions
) -> None:
    assert (
        rows_read(sessions, statement, {**values, **_named(statement, full_business)}) < ROWS / 100
    )


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (of_charges.CHARGE_PAGE, {"is_parked": False, **PAGE}),
        (of_payments.EVENT_PAGE, EVENTS),
        (of_purchases.PURCHASE_PAGE, {"customer_id": None, "status": None, **PAGE}),
    ],
    ids=name_of,
)
@pytest.mark.usefixtures("full_business")
def test_lists_of_an_empty_business_do_not_read_rows_of_others(
    statement: TextClause, values: dict[str, object], shop: Shop
) -> None:
    named = {**values, **_named(statement, shop.business_id)}

    assert rows_read(shop.sessions, statement, named) < ROWS / 100


def _named(statement: TextClause, business_id: str) -> dict[str, object]:
    return {"business_id": business_id} if ":business_id" in statement.text else {}
