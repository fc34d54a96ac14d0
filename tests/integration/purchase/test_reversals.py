"""Refunds and disputes take their share of the credit back once, from the purchase's lot first."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from metering.ids import PurchaseId
from metering.ledger.businesses import BusinessChange, ReversalPolicy, change_business
from metering.payment.facts import PaymentFact, ReversalFact, note_payment, note_reversal
from metering.purchase.expire import expire_credit
from metering.purchase.purchases import NewPurchase, Purchase, get_purchase, order_purchase
from metering.purchase.reversal_target import PaymentStatus, ReversalKind, ReversalStatus
from metering.purchase.settle import settle_purchase
from support.tenant import Shop, shared_database

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
MARCH = NOW + timedelta(days=30)


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "reversals") as name:
        yield servers.url_of(name)


def buy(shop: Shop, price: int = 1000, **more: object) -> PurchaseId:
    new = NewPurchase.model_validate({"currency": "USD", "price": price, **more})
    with shop.sessions.transaction() as conn:
        return order_purchase(conn, shop.business_id, shop.customers[0], new).purchase_id


def pay(
    shop: Shop,
    purchase_id: PurchaseId | None,
    amount: int = 1000,
    *,
    payment_id: str = "pay_1",
    status: PaymentStatus = "succeeded",
    currency: str = "USD",
) -> None:
    fact = PaymentFact(
        provider="stripe",
        payment_id=payment_id,
        status=status,
        amount_minor=amount,
        currency=currency,
        occurred_at=NOW,
        purchase_id=purchase_id,
    )
    with shop.sessions.transaction() as conn:
        note_payment(conn, shop.business_id, fact)


def call_back(
    shop: Shop,
    amount: int | None,
    status: ReversalStatus = "succeeded",
    *,
    reversal_id: str = "re_1",
    at: datetime = NOW,
) -> None:
    kind: ReversalKind = "dispute" if status in {"open", "won", "lost"} else "refund"
    fact = ReversalFact(
        provider="stripe",
        kind=kind,
        reversal_id=reversal_id,
        payment_id="pay_1",
        status=status,
        occurred_at=at,
        amount_minor=amount,
    )
    with shop.sessions.transaction() as conn:
        note_reversal(conn, shop.business_id, fact)


def settle(shop: Shop, purchase_id: PurchaseId) -> Purchase:
    with shop.sessions.transaction() as conn:
        settle_purchase(conn, purchase_id)
    with shop.sessions.transaction() as conn:
        return get_purchase(conn, shop.business_id, purchase_id)


def bought(shop: Shop, price: int = 1000, **more: object) -> PurchaseId:
    """Buy, pay and settle."""
    purchase_id = buy(shop, price, **more)
    pay(shop, purchase_id, price)
    settle(shop, purchase_id)
    return purchase_id


def policy(shop: Shop, name: ReversalPolicy) -> None:
    with shop.sessions.transaction() as conn:
        change_business(conn, shop.business_id, BusinessChange(reversal_policy=name))


def signed(shop: Shop) -> list[tuple[str, int]]:
    """Type and signed amount of each entry, oldest first."""
    return [
        (entry.event_type, entry.amount_minor if entry.is_credit else -entry.amount_minor)
        for entry in reversed(shop.entries())
    ]


def test_a_pending_purchase_is_not_spendable(shop: Shop) -> None:
    purchase_id = buy(shop)
    pay(shop, purchase_id, status="pending")

    assert settle(shop, purchase_id).status == "pending"
    assert shop.entries() == []


def test_a_payment_that_is_reported_many_times_is_credited_once(shop: Shop) -> None:
    purchase_id = buy(shop, credit=1200)
    for _ in range(3):
        pay(shop, purchase_id)
        assert settle(shop, purchase_id).status == "settled"

    assert signed(shop) == [("payment", 1200)]
    assert shop.faults() == []


def test_a_failed_payment_can_succeed_but_not_the_reverse(shop: Shop) -> None:
    purchase_id = buy(shop)
    pay(shop, purchase_id, status="failed")
    assert settle(shop, purchase_id).status == "failed"

    pay(shop, purchase_id)
    assert settle(shop, purchase_id).status == "settled"
    pay(shop, purchase_id, status="failed")

    assert settle(shop, purchase_id).status == "settled"


@pytest.mark.parametrize(("amount", "currency"), [(999, "USD"), (1000, "INR")])
def test_a_payment_that_is_too_small_or_in_another_currency_credits_nothing(
    shop: Shop, amount: int, currency: str
) -> None:
    purchase_id = buy(shop)
    pay(shop, purchase_id, amount, currency=currency)

    assert settle(shop, purchase_id).status == "pending"
    ((reason,),) = shop.rows(
        f"SELECT parked_reason FROM payments WHERE purchase_id = '{purchase_id}'"
    )
    assert reason == ("underpaid" if currency == "USD" else "other_currency")


def test_a_second_payment_of_a_purchase_is_parked(shop: Shop) -> None:
    purchase_id = bought(shop)
    pay(shop, purchase_id, payment_id="pay_2")

    settle(shop, purchase_id)

    assert signed(shop) == [("payment", 1000)]
    assert shop.rows(
        "SELECT payment_id, parked_reason FROM payments WHERE parked_reason IS NOT NULL"
        f" AND purchase_id = '{purchase_id}'"
    ) == [("pay_2", "paid_twice")]


def test_a_refund_after_partial_use_leaves_exactly_the_debt(shop: Shop) -> None:
    purchase_id = bought(shop)
    shop.enter(400, debit=True)

    call_back(shop, None)
    purchase = settle(shop, purchase_id)

    assert (purchase.status, purchase.refunded_minor) == ("reversed", 1000)
    assert signed(shop)[-1] == ("refund", -1000)
    assert shop.wallet().balance_minor == -400
    assert shop.faults() == []


def test_a_refund_takes_from_the_purchase_s_own_lot_before_others(shop: Shop) -> None:
    shop.enter(300)
    purchase_id = bought(shop, priority=90)
    shop.enter(100, debit=True)

    call_back(shop, 600)
    settle(shop, purchase_id)

    assert shop.lots() == [(200, False), (400, False)]
    assert shop.faults() == []


def test_a_refund_beyond_its_own_lot_takes_from_others(shop: Shop) -> None:
    purchase_id = bought(shop)
    shop.enter(700, debit=True)
    shop.enter(500)

    call_back(shop, 800)
    settle(shop, purchase_id)

    assert shop.lots() == [(0, False), (0, False)]
    assert shop.wallet().balance_minor == 0
    assert shop.faults() == []


def test_a_reversal_that_stops_at_zero_reports_the_shortfall(shop: Shop) -> None:
    policy(shop, "stop_at_zero")
    purchase_id = bought(shop)
    shop.enter(900, debit=True)
    shop.enter(50)

    call_back(shop, None)
    purchase = settle(shop, purchase_id)

    assert (purchase.refunded_minor, purchase.shortfall_minor) == (1000, 850)
    assert shop.wallet().balance_minor == 0
    assert shop.faults() == []


def test_shares_of_a_bonus_sum_to_the_whole_credit(shop: Shop) -> None:
    purchase_id = bought(shop, 1000, credit=1001)
    for part in range(7):
        call_back(shop, 142, reversal_id=f"re_{part}")
        settle(shop, purchase_id)
    call_back(shop, 6, reversal_id="re_rest")

    assert settle(shop, purchase_id).status == "reversed"
    assert shop.wallet().balance_minor == 0
    assert shop.faults() == []


def test_a_refund_before_its_payment_waits_for_it(shop: Shop) -> None:
    call_back(shop, 250)
    purchase_id = bought(shop)

    assert signed(shop) == [("payment", 1000), ("refund", -250)]
    assert settle(shop, purchase_id).status == "partially_reversed"
    assert shop.faults() == []


def test_a_refund_that_fails_later_gives_the_credit_back(shop: Shop) -> None:
    purchase_id = bought(shop)
    call_back(shop, 400)
    settle(shop, purchase_id)

    call_back(shop, 400, "failed", at=MARCH)
    settle(shop, purchase_id)

    assert signed(shop)[-1] == ("refund_reversal", 400)
    assert shop.lots() == [(1000, False)]
    assert shop.faults() == []


def test_an_open_dispute_freezes_the_rest_of_the_credit_and_a_won_one_frees_it(shop: Shop) -> None:
    purchase_id = bought(shop)
    shop.enter(300, debit=True)
    call_back(shop, None, "open")
    assert settle(shop, purchase_id).status == "disputed"
    assert (shop.lots(), shop.wallet().frozen_minor) == ([(700, True)], 700)

    call_back(shop, None, "won")
    assert settle(shop, purchase_id).status == "settled"

    assert (shop.lots(), shop.wallet().frozen_minor) == ([(700, False)], 0)
    assert len(signed(shop)) == 2
    assert shop.faults() == []


def test_frozen_credit_is_not_spent(shop: Shop) -> None:
    purchase_id = bought(shop)
    shop.enter(100)
    call_back(shop, None, "open")
    settle(shop, purchase_id)
    shop.meter("tokens", {"USD": "1"})

    shop.charge(150)

    assert shop.lots() == [(1000, True), (0, False)]
    assert shop.wallet().balance_minor == 950
    assert shop.wallet().debited_minor - shop.wallet().covered_minor == 50
    assert shop.faults() == []


def test_a_lost_dispute_takes_the_credit_and_a_later_win_gives_it_back(shop: Shop) -> None:
    purchase_id = bought(shop)
    shop.enter(300, debit=True)
    call_back(shop, None, "lost")
    assert settle(shop, purchase_id).status == "reversed"
    assert shop.wallet().balance_minor == -300

    call_back(shop, None, "won", at=MARCH)
    assert settle(shop, purchase_id).status == "settled"

    assert signed(shop)[-2:] == [("dispute", -1000), ("dispute_reversal", 1000)]
    assert shop.wallet().balance_minor == 700
    assert shop.faults() == []


def test_credit_of_a_refunded_and_disputed_payment_is_taken_once(shop: Shop) -> None:
    purchase_id = bought(shop)
    call_back(shop, None, "lost", reversal_id="dp_1")
    settle(shop, purchase_id)

    call_back(shop, None)
    settle(shop, purchase_id)

    assert signed(shop) == [("payment", 1000), ("dispute", -1000)]
    assert shop.faults() == []


def test_expired_credit_is_not_taken_again_from_other_lots(shop: Shop) -> None:
    purchase_id = bought(shop, valid_days=1)
    shop.enter(100, debit=True)
    shop.enter(500)
    shop.pass_days(1)
    expire_credit(shop.sessions.transaction)

    call_back(shop, None)
    purchase = settle(shop, purchase_id)

    # 900 had expired; the used 100 are taken from the other lot.
    assert (purchase.refunded_minor, purchase.shortfall_minor) == (1000, 900)
    assert shop.wallet().balance_minor == 400
    assert shop.faults() == []


def test_parts_of_a_refund_count_expired_credit_once(shop: Shop) -> None:
    purchase_id = bought(shop, valid_days=1)
    shop.enter(100, debit=True)
    shop.enter(500)
    shop.pass_days(1)
    expire_credit(shop.sessions.transaction)

    for part in range(4):
        call_back(shop, 250, reversal_id=f"re_{part}")
        settle(shop, purchase_id)

    assert shop.wallet().balance_minor == 400
    assert shop.faults() == []
