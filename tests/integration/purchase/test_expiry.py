"""Credit expires on time, also if no task has run; it is announced before and reported after."""

from collections.abc import Iterator
from datetime import timedelta
from threading import Event
from typing import Any

import pytest

from metering.errors import InsufficientFundsError
from metering.ids import Currency, LotId
from metering.ledger.lots.freeze import freeze_lot
from metering.ledger.post import lock_wallets
from metering.ledger.wallets import wallets_of
from metering.payment.manual import PaidOrder, record_paid_order
from metering.purchase.expire import announce_expiring, expire_credit
from metering.purchase.settle import settle_purchase
from support.tenant import Shop, at_once, event, pool_of, shared_database
from support.traffic import wait_for
from worker.session import Sessions


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "expiry") as name:
        yield servers.url_of(name)


def expire(shop: Shop, page: int = 500) -> None:
    expire_credit(shop.sessions.transaction, page)


def tell(shop: Shop, *days: int) -> None:
    announce_expiring(shop.sessions.transaction, days)


def notices(shop: Shop, type_: str) -> list[dict[str, Any]]:
    rows = shop.rows(
        f"SELECT data FROM webhook_events WHERE business_id = '{shop.business_id}'"
        f" AND type = '{type_}' ORDER BY webhook_event_id"
    )
    return [data for (data,) in rows]


def freeze(shop: Shop, lot_id: str, *, is_frozen: bool) -> None:
    with shop.sessions.transaction() as conn:
        freeze_lot(conn, shop.wallet().wallet_id, LotId(lot_id), is_frozen=is_frozen)


def test_expired_credit_is_not_spent_before_the_expiry_task_has_run(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.grant(100, days=1)
    shop.pass_days(1)

    shop.charge(30)

    assert shop.lots() == [(100, False)]
    with pytest.raises(InsufficientFundsError):
        shop.enter(1, debit=True)


def test_expired_credit_is_not_shown_as_available(shop: Shop) -> None:
    shop.grant(100, days=1)
    shop.grant(7)
    shop.pass_days(1)

    with shop.sessions.transaction() as conn:
        view = wallets_of(conn, shop.business_id, shop.customers[0])[Currency("USD")]

    assert (view.wallet.balance_minor, view.spendable_minor) == (107, 7)


def test_expiry_takes_out_exactly_the_rest_of_a_lot(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    lot_id = shop.grant(100, days=1)
    shop.charge(30)
    shop.pass_days(1)

    expire(shop)

    (entry, *_) = shop.entries()
    assert (entry.kind, entry.amount_minor, entry.reference) == ("expiry", 70, lot_id)
    assert shop.wallet().balance_minor == 0
    assert shop.faults() == []


def test_a_lot_expires_once(shop: Shop) -> None:
    shop.grant(100, days=1)
    shop.pass_days(1)

    expire(shop)
    expire(shop)

    assert [entry.kind for entry in shop.entries()] == ["expiry", "manual"]


def test_a_lot_expires_once_if_eight_tasks_run_at_once(shop: Shop) -> None:
    for _ in range(5):
        shop.grant(10, days=1)
    shop.pass_days(1)

    with pool_of(shop.sessions, 8) as many:
        at_once(*[lambda: expire_credit(many.transaction)] * 8)

    assert sum(entry.kind == "expiry" for entry in shop.entries()) == 5
    assert shop.wallet().balance_minor == 0
    assert shop.faults() == []


def test_a_lot_that_was_used_up_expires_without_an_entry(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.grant(30, days=1)
    shop.charge(30)
    shop.pass_days(1)

    expire(shop)

    assert [entry.kind for entry in shop.entries()] == ["usage", "manual"]
    assert shop.rows(
        f"SELECT remaining_minor FROM credit_lots WHERE business_id = '{shop.business_id}'"
    ) == [(0,)]
    assert shop.faults() == []


def test_expiry_does_not_change_debt(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.grant(100, days=1)
    shop.pass_days(1)
    shop.charge(30)

    expire(shop)

    assert shop.wallet().balance_minor == -30
    assert shop.faults() == []


def test_late_usage_from_before_the_expiry_consumes_no_expired_credit(
    shop: Shop,
) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.grant(100, days=1)
    shop.send(event(shop.customers[0], {"tokens": 10}))
    shop.pass_days(1)

    shop.drain()

    assert shop.lots() == [(100, False)]
    assert shop.wallet().debited_minor - shop.wallet().covered_minor == 10


def test_frozen_credit_does_not_expire_before_it_is_freed(shop: Shop) -> None:
    lot_id = shop.grant(100, days=1)
    freeze(shop, lot_id, is_frozen=True)
    shop.pass_days(2)
    expire(shop)
    assert shop.lots() == [(100, True)]

    freeze(shop, lot_id, is_frozen=False)
    expire(shop)

    assert shop.lots() == [(0, False)]
    assert shop.faults() == []


def test_more_lots_than_a_page_all_expire(shop: Shop) -> None:
    for amount in range(1, 8):
        shop.grant(amount, days=1)
    shop.pass_days(1)

    expire(shop, page=2)

    assert shop.wallet().balance_minor == 0
    assert shop.faults() == []


def test_a_wallet_locked_by_a_frozen_process_delays_no_other(shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    for customer in (0, 1):
        shop.grant(100, days=1, customer=customer)
    shop.pass_days(1)

    with pool_of(shop.sessions, 2) as many:
        with many.transaction() as frozen:
            lock_wallets(frozen, {shop.wallet(0).wallet_id})
            expire_credit(many.transaction)
            assert [shop.wallet(n).balance_minor for n in (0, 1)] == [100, 0]
        expire_credit(many.transaction)

    assert shop.wallet(0).balance_minor == 0
    assert shop.faults() == []


def test_expiry_waits_for_a_wallet_that_is_locked_for_a_moment(shop: Shop) -> None:
    shop.grant(100, days=1)
    shop.pass_days(1)
    is_held = Event()

    def hold(many: Sessions) -> None:
        with many.transaction() as conn:
            lock_wallets(conn, {shop.wallet().wallet_id})
            is_held.set()
            wait_for(lambda: shop.rows(WAITS) != [])

    def run(many: Sessions) -> int:
        assert is_held.wait(30)
        return expire_credit(many.transaction)

    with pool_of(shop.sessions, 2) as many:
        found = at_once(lambda: hold(many), lambda: run(many))

    assert not [each for each in found if isinstance(each, Exception)]
    assert shop.wallet().balance_minor == 0


WAITS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock'"
)


def test_expired_credit_is_announced(shop: Shop) -> None:
    lot_id = shop.grant(100, days=1)
    shop.pass_days(1)

    expire(shop)

    (notice,) = notices(shop, "credit.expired")
    assert (notice["amount"], notice["reference_object_id"]) == (100, lot_id)


def test_credit_is_announced_once_for_each_number_of_days(shop: Shop) -> None:
    shop.grant(100, days=10)
    for _day in range(11):
        tell(shop, 7, 1)
        tell(shop, 7, 1)
        shop.pass_days(1)

    assert [notice["days_ahead"] for notice in notices(shop, "credit.expiring")] == [7, 1]


def test_more_lots_than_a_page_are_all_announced(shop: Shop) -> None:
    for _ in range(5):
        shop.grant(100, days=10)
    shop.pass_days(5)

    assert announce_expiring(shop.sessions.transaction, (7,), page=2) == 5
    assert announce_expiring(shop.sessions.transaction, (7,), page=2) == 0

    assert len(notices(shop, "credit.expiring")) == 5


def test_after_a_pause_only_the_lowest_number_of_days_is_announced(shop: Shop) -> None:
    shop.grant(100, days=10)
    shop.pass_days(9.5)

    tell(shop, 7, 1)

    (notice,) = notices(shop, "credit.expiring")
    assert (notice["days_ahead"], notice["remaining"]) == (1, 100)


def test_credit_made_shortly_before_its_expiry_is_not_announced_at_once(shop: Shop) -> None:
    shop.grant(100, days=3)

    tell(shop, 7)

    assert notices(shop, "credit.expiring") == []


def test_used_up_credit_is_not_announced(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.grant(30, days=10)
    shop.charge(30)
    shop.pass_days(5)

    tell(shop, 7)

    assert notices(shop, "credit.expiring") == []


def test_a_day_of_validity_is_24_hours(shop: Shop) -> None:
    order = PaidOrder(
        order_id=f"o-{shop.business_id}",
        customer_id=shop.customers[0],
        currency="USD",
        paid=500,
        valid_days=29,
    )
    with shop.sessions.transaction() as conn:
        settle_purchase(conn, record_paid_order(conn, shop.business_id, order))

    ((lasts,),) = shop.rows(
        f"SELECT expires_at - created_at FROM credit_lots WHERE business_id = '{shop.business_id}'"
    )
    assert isinstance(lasts, timedelta)
    assert abs(lasts - timedelta(days=29)) < timedelta(minutes=1)
