"""From a paid order to credit, exactly once."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from metering.errors import IdempotencyConflictError, NotFoundError, UnsupportedCurrencyError
from metering.ids import BusinessId, PurchaseId
from metering.money import INT64_MAX
from metering.payment.apply import settle_due
from metering.payment.manual import PaidOrder, record_paid_order
from metering.purchase.purchases import get_purchase
from metering.purchase.settle import due_purchases, settle_purchase
from support.tenant import Shop, at_once, pool_of, shared_database
from worker.session import Sessions


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "purchases_made") as name:
        yield servers.url_of(name)


def order(shop: Shop, **changes: object) -> PaidOrder:
    return PaidOrder.model_validate(
        {
            "order_id": "o-1",
            "customer_id": shop.customers[0],
            "currency": "USD",
            "paid": 500,
            **changes,
        }
    )


def record(
    shop: Shop,
    paid: PaidOrder,
    business_id: BusinessId | None = None,
    sessions: Sessions | None = None,
) -> PurchaseId:
    with (sessions or shop.sessions).transaction() as conn:
        return record_paid_order(conn, business_id or shop.business_id, paid)


def credit(shop: Shop, purchase_id: PurchaseId, sessions: Sessions | None = None) -> bool:
    with (sessions or shop.sessions).transaction() as conn:
        return settle_purchase(conn, purchase_id)


def waiting(shop: Shop, page: int = 1000) -> list[PurchaseId]:
    with shop.sessions.transaction() as conn:
        return due_purchases(conn, page)


def test_a_paid_order_credits_the_amount(shop: Shop) -> None:
    purchase_id = record(shop, order(shop))

    credit(shop, purchase_id)

    (entry,) = shop.entries()
    assert (entry.amount_minor, entry.kind, entry.event_type) == (500, "purchase", "payment")
    assert (entry.reference, entry.after_minor) == (purchase_id, 500)


def test_a_bonus_is_credited_instead_of_the_amount(shop: Shop) -> None:
    credit(shop, record(shop, order(shop, credit=600)))

    assert shop.wallet().balance_minor == 600


def test_a_purchase_delivered_again_is_credited_once(shop: Shop) -> None:
    purchase_id = record(shop, order(shop))

    found = [credit(shop, purchase_id) for _ in range(3)]

    assert (found, shop.wallet().balance_minor) == ([True, False, False], 500)


def test_a_purchase_delivered_many_times_at_once_is_credited_once(shop: Shop) -> None:
    purchase_id = record(shop, order(shop))

    with pool_of(shop.sessions, 8) as many:
        found = at_once(*[lambda: credit(shop, purchase_id, many)] * 8)

    assert sorted(map(str, found)) == ["False"] * 7 + ["True"]
    assert (shop.wallet().balance_minor, shop.faults()) == (500, [])


def test_a_purchase_beyond_the_limit_of_a_wallet_is_refused_and_no_longer_swept(shop: Shop) -> None:
    credit(shop, record(shop, order(shop)))
    too_much = record(shop, order(shop, order_id="o-2", credit=INT64_MAX))

    with shop.sessions.transaction() as conn:
        done = settle_due(conn, too_much)
        purchase = get_purchase(conn, shop.business_id, too_much)

    assert (done, purchase.status, too_much in waiting(shop)) == (False, "pending", False)
    assert "64-bit" in (purchase.failure or "")


def test_an_order_recorded_many_times_at_once_makes_one_purchase(shop: Shop) -> None:
    with pool_of(shop.sessions, 8) as many:
        found = at_once(*[lambda: record(shop, order(shop), sessions=many)] * 8)

    assert len(set(map(str, found))) == 1, found


@pytest.mark.parametrize(
    "changes",
    [{"paid": 501}, {"credit": 600}, {"currency": "INR"}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_order_with_other_content_is_a_conflict_and_changes_nothing(
    shop: Shop, changes: dict[str, object]
) -> None:
    purchase_id = record(shop, order(shop))

    with pytest.raises(IdempotencyConflictError):
        record(shop, order(shop, **changes))

    credit(shop, purchase_id)
    assert shop.wallet().balance_minor == 500


def test_an_order_of_another_customer_is_a_conflict(shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        shop.add_customer(conn)
    record(shop, order(shop))

    with pytest.raises(IdempotencyConflictError):
        record(shop, order(shop, customer_id=shop.customers[1]))


def test_two_businesses_may_use_the_same_order_id(shop: Shop) -> None:
    other = Shop.open(shop.sessions, shop.buffer, name="Bolt")

    assert record(shop, order(shop)) != record(other, order(other))


def test_the_sweep_finds_paid_purchases_that_are_not_credited_oldest_first(shop: Shop) -> None:
    purchases = [record(shop, order(shop, order_id=f"o-{n}")) for n in range(3)]
    before = waiting(shop)

    credit(shop, purchases[1])

    mine = [purchase_id for purchase_id in before if purchase_id in purchases]
    left = [purchase_id for purchase_id in waiting(shop) if purchase_id in purchases]
    assert (mine, left) == (purchases, [purchases[0], purchases[2]])


def test_the_sweep_takes_no_more_than_a_page(shop: Shop) -> None:
    for n in range(3):
        record(shop, order(shop, order_id=f"o-{n}"))

    assert len(waiting(shop, page=2)) == 2


def test_the_sweep_credits_a_purchase_whose_credit_failed(shop: Shop) -> None:
    purchase_id = record(shop, order(shop))

    with shop.sessions.transaction() as conn:
        settle_purchase(conn, purchase_id)
        conn.rollback()

    assert purchase_id in waiting(shop)
    assert credit(shop, purchase_id)
    assert shop.wallet().balance_minor == 500


def test_an_unknown_purchase_is_not_found(shop: Shop) -> None:
    with pytest.raises(NotFoundError):
        credit(shop, PurchaseId("pur_nobody"))


def test_a_customer_of_another_business_is_not_found(shop: Shop) -> None:
    other = Shop.open(shop.sessions, shop.buffer, name="Bolt")

    with pytest.raises(NotFoundError):
        record(shop, order(other))


def test_an_unknown_currency_is_refused(shop: Shop) -> None:
    with pytest.raises(UnsupportedCurrencyError):
        record(shop, order(shop, currency="EUR"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("paid", bad) for bad in (0, -1, 1.5, "5", True, None, INT64_MAX + 1)],
        ("credit", 0),
        ("credit", INT64_MAX + 1),
        ("order_id", ""),
        ("order_id", "  "),
        ("order_id", "o" * 256),
        ("order_id", "nul\0"),
        ("customer_id", ""),
        ("customer_id", "nul\0"),
        ("other", 1),
    ],
    ids=str,
)
def test_bad_input_is_refused_by_its_field(field: str, value: object) -> None:
    good = {"order_id": "o-1", "customer_id": "cus_1", "currency": "USD", "paid": 500}

    with pytest.raises(ValidationError) as refused:
        PaidOrder.model_validate({**good, field: value})

    assert {problem["loc"][0] for problem in refused.value.errors()} == {field}
