"""Wallets and purchases from before there were lots: the upgrade loses nothing, and all goes on."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pytest
from alembic import command
from sqlalchemy import Connection, text

from metering.buffer.stream import UsageBuffer
from metering.ids import BusinessId, Currency, CustomerId, EntryId, WalletId, new_id
from metering.ledger.entry import Entry, Kind, chain_digest
from metering.payment.manual import ShopDispute, ShopRefund, record_reversal
from metering.purchase.purchases import Purchase, page_of_purchases
from metering.purchase.refund import DebitRefund, refund_debit
from metering.purchase.settle import due_purchases, settle_purchase
from support.tenant import Shop, shared_database
from worker.migrate import _scripts, migrate
from worker.session import Sessions, make_engine
from worker.settings import settings_from

BEFORE = "0005"
# Each test has a business.
TESTS = 5
OF_CUSTOMER = text("SELECT business_id FROM customers WHERE customer_id = :c")
LAST_YEAR = datetime(2025, 6, 1, tzinfo=UTC)
# The entries of each wallet: kind and amount.
HELD: Final[list[tuple[Kind, int]]] = [("purchase", 1000), ("manual", 200), ("manual", -300)]
OWED: Final[list[tuple[Kind, int]]] = [("manual", 100), ("manual", -250)]


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here."""
    with shared_database(servers.execute, "template1", "money_of_before") as name:
        yield servers.url_of(name)


@pytest.fixture(scope="module")
def shops(database_url: str) -> list[list[CustomerId]]:
    """Upgraded businesses, one for each test: their customers."""
    engine = make_engine(settings_from({"DATABASE_URL": database_url}))
    with engine.begin() as conn, _scripts() as config:
        config.attributes["connection"] = conn
        command.upgrade(config, BEFORE)
        made = [old_business(conn) for _ in range(TESTS)]
    migrate(engine)
    engine.dispose()
    return made


@pytest.fixture
def old(shops: list[list[CustomerId]], sessions: Sessions, buffer: UsageBuffer) -> Shop:
    """A business after the first sweep: customers in credit, in debt, at zero, with a payment."""
    customers = shops.pop()
    with sessions.transaction() as conn:
        for purchase_id in due_purchases(conn, 100):
            settle_purchase(conn, purchase_id)
        business_id = conn.execute(OF_CUSTOMER, {"c": customers[0]}).scalar_one()
    return Shop(sessions, buffer, business_id, customers)


def old_business(conn: Connection) -> list[CustomerId]:
    """Write a business with its customers in the old form; return the customers."""
    business_id, customers = BusinessId(new_id("bus")), []
    run(conn, "INSERT INTO businesses (business_id, name) VALUES (:b, 'Acme')", b=business_id)
    for moved in (HELD, OWED, [], []):
        customers.append(CustomerId(new_id("cus")))
        open_wallet(conn, business_id, customers[-1], moved)
    buy(conn, business_id, customers[0], "credited")
    buy(conn, business_id, customers[3], "paid")
    return customers


def run(conn: Connection, statement: str, **values: object) -> None:
    conn.execute(text(statement), values)


def open_wallet(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    moved: list[tuple[Kind, int]],
) -> None:
    """Write a customer with a wallet in USD in the old form."""
    names = {"b": business_id, "c": customer_id, "w": new_id("wal")}
    run(conn, "INSERT INTO customers (customer_id, business_id, email, name)"
        " VALUES (:c, :b, 'a@example.com', 'A')", **names)  # fmt: skip
    run(conn, "INSERT INTO wallets (wallet_id, business_id, customer_id, currency)"
        " VALUES (:w, :b, :c, 'USD')", **names)  # fmt: skip
    last = None
    for kind, amount in moved:
        last = next_entry(names, last, kind, amount)
        columns: dict[str, object] = last._asdict()
        columns["metadata"] = columns.pop("metadata_json")
        del columns["debited_before_minor"]
        run(conn, f"INSERT INTO ledger_entries ({', '.join(columns)})"
            f" VALUES ({', '.join(':' + name for name in columns)})", **columns)  # fmt: skip
    if last is not None:
        run(conn, "UPDATE wallets SET balance_minor = :after, version = :version, chain = :chain"
            " WHERE wallet_id = :w", after=last.after_minor, version=last.version,
            chain=last.chain, **names)  # fmt: skip


def next_entry(names: dict[str, str], last: Entry | None, kind: Kind, amount: int) -> Entry:
    before = 0 if last is None else last.after_minor
    version = 1 if last is None else last.version + 1
    entry = Entry(
        entry_id=EntryId(new_id("ent")),
        wallet_id=WalletId(names["w"]),
        version=version,
        business_id=BusinessId(names["b"]),
        customer_id=CustomerId(names["c"]),
        currency=Currency("USD"),
        amount_minor=abs(amount),
        is_credit=amount > 0,
        before_minor=before,
        after_minor=before + amount,
        event_type="payment" if kind == "purchase" else "merchant_adjustment",
        kind=kind,
        reason=None,
        reference=purchase_of(names["c"]) if kind == "purchase" else None,
        idempotency_key=None,
        request_digest=None,
        batch_id=None,
        event_count=0,
        exact_cost=Decimal(abs(amount)),
        remainder_before=Decimal(0),
        remainder_after=Decimal(0),
        metadata_json="{}",
        created_at=LAST_YEAR + timedelta(minutes=version),
    )
    return entry._replace(chain=chain_digest(b"" if last is None else last.chain, entry))


def buy(conn: Connection, business_id: BusinessId, customer_id: CustomerId, status: str) -> None:
    """Write a purchase of 1000 for 800 in the old form."""
    run(
        conn,
        "INSERT INTO purchases (purchase_id, business_id, customer_id, currency, order_id,"
        " paid_minor, credit_minor, status, entry_id, paid_at, credited_at) SELECT"
        " :p, :b, :c, 'USD', :p, 800, 1000, :s, e.entry_id, :at,"
        " CASE WHEN e.entry_id IS NOT NULL THEN CAST(:at AS timestamptz) END FROM (SELECT) nothing"
        " LEFT JOIN ledger_entries e ON e.kind = 'purchase' AND e.customer_id = :c",
        p=purchase_of(customer_id),
        b=business_id,
        c=customer_id,
        s=status,
        at=LAST_YEAR,
    )


def purchase_of(customer_id: str) -> str:
    return f"pur_{customer_id[4:]}"


def purchases(shop: Shop) -> list[Purchase]:
    """All purchases, the oldest first."""
    with shop.sessions.transaction() as conn:
        return page_of_purchases(conn, shop.business_id, page=10)[::-1]


def balances(shop: Shop) -> list[int]:
    return [shop.wallet(customer).balance_minor for customer in range(4)]


def test_every_balance_becomes_lots_or_debt_and_paid_purchases_are_credited_once(old: Shop) -> None:
    assert balances(old) == [900, -150, 0, 1000]
    assert [purchase.status for purchase in purchases(old)] == ["settled", "settled"]
    assert [(p.price_minor, p.paid_minor, p.provider) for p in purchases(old)] == [
        (800, 800, "shop")
    ] * 2
    assert old.faults() == []


def test_old_credit_is_spent_and_old_debt_is_paid_first(old: Shop) -> None:
    old.enter(850, debit=True)
    old.enter(200, customer=1)
    old.enter(30, customer=1, debit=True)

    assert balances(old)[:2] == [50, 20]
    assert (old.lots(0), old.lots(1)) == ([(50, False)], [(20, False)])
    assert old.faults() == []


def test_an_old_purchase_is_reversed_and_given_back(old: Shop) -> None:
    first = purchases(old)[0].purchase_id
    with old.sessions.transaction() as conn:
        record_reversal(conn, old.business_id, first, ShopRefund(refund_id="re", amount=400))
    after_refund = balances(old)[0]
    for status in ("open", "lost"):
        with old.sessions.transaction() as conn:
            record_reversal(
                conn, old.business_id, first, ShopDispute(dispute_id="dp", status=status)
            )
    after_loss = balances(old)[0]
    with old.sessions.transaction() as conn:
        record_reversal(conn, old.business_id, first, ShopDispute(dispute_id="dp", status="won"))

    assert (after_refund, after_loss, balances(old)[0]) == (400, -100, 400)
    assert old.faults() == []


def test_an_old_debit_is_refunded_once_into_credit_that_does_not_expire(old: Shop) -> None:
    debit = old.entries(0)[0]
    with old.sessions.transaction() as conn:
        refund_debit(conn, old.business_id, old.customers[0], debit.entry_id, DebitRefund())

    assert balances(old)[0] == 1200
    assert old.rows(
        "SELECT amount_minor FROM credit_lots WHERE expires_at IS NULL AND source = 'refund'"
        f" AND business_id = '{old.business_id}'"
    ) == [(300,)]
    assert old.faults() == []


def test_usage_consumes_old_credit_and_adds_to_old_debt(old: Shop) -> None:
    old.meter("tokens", {"USD": "1"})

    old.charge(950)
    old.charge(10, customer=1)

    assert balances(old)[:2] == [-50, -160]
    assert old.faults() == []
