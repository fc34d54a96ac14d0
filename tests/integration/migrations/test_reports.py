"""The views for finance add up to the ledger, with any lot as the current one."""

import psycopg
import pytest

from support.tenant import Shop
from worker.settings import Settings

SUMS = """
SELECT w.customer_id, w.balance_minor, coalesce(l.left_minor, 0) - w.debt_minor AS by_lots,
    coalesce(e.change_minor, 0) AS by_entries, e.entries, w.entry_count,
    l.frozen_minor, w.frozen_minor AS frozen
FROM gullak_reports.wallets w
LEFT JOIN (SELECT wallet_id, sum(left_minor) AS left_minor,
    coalesce(sum(left_minor) FILTER (WHERE frozen_at IS NOT NULL), 0) AS frozen_minor
    FROM gullak_reports.lots GROUP BY 1) l USING (wallet_id)
LEFT JOIN (SELECT wallet_id, sum(change_minor) AS change_minor, count(*) AS entries
    FROM gullak_reports.entries GROUP BY 1) e USING (wallet_id)
WHERE w.currency = 'USD' ORDER BY 1
"""


@pytest.fixture
def money(shop: Shop) -> Shop:
    """A wallet in the middle of its second lot, one in debt, one with a frozen lot, one at zero."""
    shop.meter(prices={"USD": "1"})
    with shop.sessions.transaction() as conn:
        for _ in range(3):
            shop.add_customer(conn)
    for amount in (100, 200, 400):
        shop.enter(amount)
    shop.charge(155)
    shop.charge(10)
    shop.enter(30, customer=1)
    shop.charge(70, customer=1)
    shop.enter(50, customer=2)
    return shop


def test_lots_and_entries_sum_to_the_balance_of_each_wallet(money: Shop) -> None:
    # Ids from one millisecond have no order.
    rows = sorted(money.rows(SUMS), key=lambda row: money.customers.index(row[0]))

    balances = [row[1] for row in rows]
    assert balances == [535, -40, 50, 0]
    assert [row[2] for row in rows] == balances
    assert [row[3] for row in rows] == balances
    assert [row[4] or 0 for row in rows] == [row[5] for row in rows]


def test_the_column_of_the_table_differs_and_its_comment_names_the_view(
    money: Shop,
) -> None:
    (customer, *_) = money.customers
    ((stored,),) = money.rows(
        "SELECT sum(remaining_minor) FROM credit_lots JOIN wallets USING (wallet_id)"
        f" WHERE customer_id = '{customer}'"
    )
    ((words,),) = money.rows(
        "SELECT col_description('credit_lots'::regclass, attnum) FROM pg_attribute"
        " WHERE attrelid = 'credit_lots'::regclass AND attname = 'remaining_minor'"
    )

    assert int(str(stored)) == 545  # 535 are left
    assert "gullak_reports.lots" in str(words)


def test_every_view_and_unclear_column_has_a_comment(money: Shop) -> None:
    views = money.rows(
        "SELECT relname, obj_description(oid) IS NOT NULL FROM pg_class"
        " WHERE relnamespace = 'gullak_reports'::regnamespace ORDER BY 1"
    )
    bare = money.rows(
        "SELECT c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a"
        " ON a.attrelid = c.oid WHERE c.relnamespace = 'gullak_reports'::regnamespace"
        " AND a.attname ~ '_minor$|_count$|^exact_cost$|^remainder$'"
        " AND col_description(c.oid, a.attnum) IS NULL"
    )

    assert views == [("entries", True), ("lots", True), ("wallets", True)]
    assert bare == []


def test_a_finance_reader_sees_the_views_and_no_table(money: Shop, config: Settings) -> None:
    role = f"finance_{config.database_url.get_secret_value().rpartition('/')[2]}"
    money.run(f"CREATE ROLE {role} NOLOGIN")
    money.run(f"GRANT USAGE ON SCHEMA gullak_reports TO {role}")
    money.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA gullak_reports TO {role}")

    with psycopg.connect(config.database_url.get_secret_value()) as conn:
        conn.execute(f"SET ROLE {role}")
        seen = conn.execute("SELECT count(*) FROM gullak_reports.lots").fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT count(*) FROM credit_lots")
    money.run(f"DROP OWNED BY {role}")
    money.run(f"DROP ROLE {role}")

    assert seen == (5,)
