"""A checkout reserves credit and charges the rest; a failure gives the credit back to its lots."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from metering.errors import (
    IdempotencyConflictError,
    InvalidInputError,
    NotFoundError,
    UnsupportedCurrencyError,
)
from metering.ids import CheckoutId
from metering.ledger.manual import ManualEntry, enter
from metering.payment.checkouts.checkout import Checkout, update_checkout
from support.checkout_driver import CheckoutDriver, connect, unavailable
from support.tenant import Shop, at_once, pool_of, shared_database


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "checkouts_made") as name:
        yield servers.url_of(name)


def parts(checkout: Checkout) -> tuple[int, int, str]:
    return checkout.credit_minor, checkout.payment_minor, checkout.status


def left(shop: Shop) -> list[int]:
    """The amount left of each lot, oldest first."""
    rows = shop.rows(
        "SELECT CASE WHEN w.lot_id = l.lot_id THEN w.lot_left_minor ELSE l.remaining_minor END"
        " FROM credit_lots l JOIN wallets w USING (wallet_id)"
        f" WHERE l.business_id = '{shop.business_id}' ORDER BY l.lot_id"
    )
    return [int(str(minor)) for (minor,) in rows]


def signed(shop: Shop) -> list[tuple[str, int]]:
    """Kind and signed amount of each entry, oldest first."""
    return [
        (entry.kind, entry.amount_minor if entry.is_credit else -entry.amount_minor)
        for entry in reversed(shop.entries())
    ]


def parked(shop: Shop) -> list[tuple[object, ...]]:
    return list(
        shop.rows(
            "SELECT payment_id, parked_reason FROM payments WHERE parked_reason IS NOT NULL"
            f" AND business_id = '{shop.business_id}' ORDER BY payment_id"
        )
    )


# --- the split ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance", "split"),
    [(1500, (1000, 0)), (1000, (1000, 0)), (999, (999, 1)), (1, (1, 999)), (0, (0, 1000))],
)
def test_credit_pays_first_and_a_payment_the_rest(
    shop: Shop, driver: CheckoutDriver, balance: int, split: tuple[int, int]
) -> None:
    if balance:
        shop.enter(balance)

    checkout = driver.check_out(1000)

    assert parts(checkout) == (*split, "completed")
    assert driver.provider.charged() == ([split[1]] if split[1] else [])
    assert shop.wallet().balance_minor == balance - split[0]
    assert shop.faults() == []


def test_a_wallet_in_debt_pays_nothing(shop: Shop, driver: CheckoutDriver) -> None:
    shop.meter("tokens", {"USD": "1"})
    shop.charge(50)

    checkout = driver.check_out(1000)

    assert parts(checkout) == (0, 1000, "completed")
    assert shop.wallet().balance_minor == -50


def test_a_pending_payment_keeps_the_credit_reserved(shop: Shop, driver: CheckoutDriver) -> None:
    shop.enter(300)

    checkout = driver.check_out(1000, "pending")

    assert parts(checkout) == (300, 700, "pending")
    assert shop.wallet().balance_minor == 0
    assert signed(shop)[-1] == ("checkout", -300)
    assert shop.faults() == []


def test_a_payment_on_a_page_has_a_url(driver: CheckoutDriver) -> None:
    checkout = driver.check_out(1000, None, return_url="https://shop.example/back")

    assert checkout.status == "pending"
    assert checkout.payment_url == f"https://pay.example/{checkout.payment_id}"


# --- the end --------------------------------------------------------------------------------------


def test_a_look_up_completes_a_checkout_whose_payment_was_pending(driver: CheckoutDriver) -> None:
    checkout = driver.check_out(1000, "pending")
    driver.provider.end(driver.charge().charge_id, "succeeded")

    driver.sweep()

    assert driver.checkout(checkout.checkout_id).status == "completed"
    assert driver.charge().status == "succeeded"


def test_a_webhook_completes_a_checkout_and_its_charge(shop: Shop, driver: CheckoutDriver) -> None:
    checkout = driver.check_out(1000, "pending")

    for _ in range(2):
        driver.report(driver.charge().charge_id)

    assert driver.checkout(checkout.checkout_id).status == "completed"
    assert driver.charge().status == "succeeded"
    assert shop.faults() == []


def test_the_sweep_applies_a_webhook_whose_run_was_lost(driver: CheckoutDriver) -> None:
    checkout = driver.check_out(1000, "pending")
    driver.report(driver.charge().charge_id, settles=False)
    calls = len(driver.provider.calls)

    driver.sweep()

    assert driver.checkout(checkout.checkout_id).status == "completed"
    assert len(driver.provider.calls) == calls, "a known end needs no call"


def test_a_decline_gives_the_credit_back_to_its_lots(shop: Shop, driver: CheckoutDriver) -> None:
    shop.enter(300)
    shop.enter(500)

    checkout = driver.check_out(1000, "declined")

    assert parts(checkout) == (800, 200, "failed")
    assert checkout.failure == "card_declined"
    assert left(shop) == [300, 500]
    assert signed(shop)[-2:] == [("checkout", -800), ("refund", 800)]
    assert shop.entries()[0].reference == checkout.debit_entry_id
    assert shop.faults() == []


def test_a_refused_request_fails_with_the_reason(shop: Shop, driver: CheckoutDriver) -> None:
    shop.enter(300)

    checkout = driver.check_out(1000, "refused")

    assert (checkout.status, checkout.failure) == ("failed", "no such payment method")
    assert shop.wallet().balance_minor == 300
    assert shop.faults() == []


def test_reserved_credit_that_has_expired_comes_back_for_a_while(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(200)
    shop.enter(300)
    with shop.sessions.transaction() as conn:
        conn.execute(
            text(
                "UPDATE credit_lots SET expires_at = now() + interval '1 hour'"
                " WHERE business_id = :b AND amount_minor = 300"
            ),
            {"b": shop.business_id},
        )
    checkout = driver.check_out(1000, "pending")
    with shop.sessions.transaction() as conn:
        conn.execute(
            text(
                "UPDATE credit_lots SET expires_at = now() - interval '1 s'"
                " WHERE business_id = :b AND amount_minor = 300"
            ),
            {"b": shop.business_id},
        )

    driver.report(driver.charge().charge_id, "failed")

    assert driver.checkout(checkout.checkout_id).status == "failed"
    assert left(shop) == [200, 0, 300]
    ((source, is_far),) = shop.rows(
        "SELECT source, expires_at > now() + interval '29 days' FROM credit_lots"
        f" WHERE business_id = '{shop.business_id}' ORDER BY lot_id DESC LIMIT 1"
    )
    assert (source, is_far) == ("refund", True)
    assert shop.faults() == []


def test_a_refunded_part_of_the_reserved_credit_is_not_given_back_again(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)
    checkout = driver.check_out(1000, "pending")
    for amount in (100, 200):
        refund = ManualEntry(
            amount=amount, currency="USD", entry_type="credit", reference=checkout.debit_entry_id
        )
        with shop.sessions.transaction() as conn:
            enter(conn, shop.business_id, shop.customers[0], refund, kind="refund")

    driver.report(driver.charge().charge_id, "failed")

    failed = driver.checkout(checkout.checkout_id)
    assert (failed.status, failed.release_entry_id) == ("failed", shop.entries()[0].entry_id)
    assert shop.wallet().balance_minor == 300
    assert shop.faults() == []


def test_an_expired_checkout_cancels_its_payment_and_gives_the_credit_back(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)
    checkout = driver.check_out(1000, None)
    driver.expire(checkout.checkout_id)

    driver.sweep()

    failed = driver.checkout(checkout.checkout_id)
    assert (failed.status, failed.failure) == ("failed", "cancelled")
    assert driver.provider.calls[-1][0] == "cancel"
    assert left(shop) == [300]
    assert shop.faults() == []


def test_a_payment_just_before_the_expiry_counts(driver: CheckoutDriver) -> None:
    checkout = driver.check_out(1000, None)
    driver.provider.end(driver.charge().charge_id, "succeeded")
    driver.expire(checkout.checkout_id)

    driver.sweep()

    assert driver.checkout(checkout.checkout_id).status == "completed"


def test_the_credit_stays_reserved_while_the_payment_cannot_be_cancelled(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)
    checkout = driver.check_out(1000, None)
    driver.expire(checkout.checkout_id)
    driver.provider.before = unavailable

    driver.sweep()

    assert driver.checkout(checkout.checkout_id).status == "pending"
    assert shop.wallet().balance_minor == 0


def test_a_checkout_that_expired_before_its_first_request_is_not_requested(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)
    checkout = driver.begin(driver.new()).checkout
    driver.expire(checkout.checkout_id)

    driver.sweep()

    failed = driver.checkout(checkout.checkout_id)
    assert (failed.status, failed.failure) == ("failed", "expired")
    assert driver.provider.calls == []
    assert left(shop) == [300]


# --- late, twice, too little ----------------------------------------------------------------------


def test_a_payment_after_the_release_buys_credit(shop: Shop, driver: CheckoutDriver) -> None:
    shop.enter(300)
    checkout = driver.check_out(1000, "declined")

    for _ in range(2):
        driver.report(driver.charge().charge_id)

    assert driver.checkout(checkout.checkout_id).status == "failed"
    assert signed(shop)[-2:] == [("refund", 300), ("purchase", 700)]
    assert shop.wallet().balance_minor == 1000
    assert driver.charge().status == "succeeded"
    assert [notice["origin"] for notice in driver.notices("purchase.succeeded")] == ["checkout"]
    assert shop.faults() == []


def test_the_sweep_finds_a_payment_after_the_release_if_its_settling_was_lost(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.check_out(1000, "declined")
    driver.report(driver.charge().charge_id, settles=False)

    driver.sweep()

    assert shop.wallet().balance_minor == 1000
    assert driver.charge().status == "succeeded"
    assert shop.faults() == []


def test_a_second_payment_is_parked(shop: Shop, driver: CheckoutDriver) -> None:
    driver.check_out(1000)

    driver.report(driver.charge().charge_id, payment_id="pay_again")

    assert parked(shop) == [("pay_again", "paid_twice")]
    assert shop.entries() == []
    assert shop.faults() == []


def test_a_payment_that_is_too_small_completes_nothing_and_becomes_credit_after_the_end(
    shop: Shop, driver: CheckoutDriver
) -> None:
    checkout = driver.check_out(1000, None)
    driver.report(driver.charge().charge_id, payment_id="pay_part", amount=400)
    assert driver.checkout(checkout.checkout_id).status == "pending"
    assert parked(shop) == [("pay_part", "underpaid")]

    driver.expire(checkout.checkout_id)
    driver.sweep()

    assert driver.checkout(checkout.checkout_id).status == "failed"
    assert (signed(shop), parked(shop)) == ([("purchase", 400)], [])
    assert shop.faults() == []


def test_a_payment_in_another_currency_is_parked(shop: Shop, driver: CheckoutDriver) -> None:
    checkout = driver.check_out(1000, None)

    driver.report(driver.charge().charge_id, payment_id="pay_inr", currency="INR")

    assert driver.checkout(checkout.checkout_id).status == "pending"
    assert parked(shop) == [("pay_inr", "other_currency")]


def test_a_declined_card_on_a_page_does_not_end_the_checkout(driver: CheckoutDriver) -> None:
    checkout = driver.check_out(1000, None)
    driver.report(driver.charge().charge_id, "failed", payment_id="pay_first_card")
    assert driver.checkout(checkout.checkout_id).status == "pending"

    driver.provider.end(driver.charge().charge_id, "succeeded")
    driver.sweep()

    assert driver.checkout(checkout.checkout_id).status == "completed"


@pytest.mark.parametrize("order", [("failed", "succeeded"), ("succeeded", "failed")])
def test_the_statuses_of_a_payment_count_in_any_order(
    shop: Shop, driver: CheckoutDriver, order: tuple[Any, ...]
) -> None:
    shop.enter(300)
    checkout = driver.check_out(1000, "pending")

    for status in (*order, *order):
        driver.report(driver.charge().charge_id, status)

    # Either the checkout is complete, or the customer has all of the credit again.
    is_complete = driver.checkout(checkout.checkout_id).status == "completed"
    assert shop.wallet().balance_minor == (0 if is_complete else 1000)
    assert is_complete == (order[0] == "succeeded")
    assert shop.faults() == []


# --- once -----------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_checkout(shop: Shop, driver: CheckoutDriver) -> None:
    shop.enter(300)
    first = driver.begin(driver.new())

    again = driver.begin(driver.new())

    assert (first.replayed, again.replayed) == (False, True)
    assert again.checkout == first.checkout


@pytest.mark.parametrize("changes", [{"amount": 999}, {"method": None}, {"currency": "INR"}])
def test_the_same_key_with_other_content_is_a_conflict(
    shop: Shop, driver: CheckoutDriver, changes: dict[str, Any]
) -> None:
    shop.enter(300)
    driver.begin(driver.new())

    with pytest.raises(IdempotencyConflictError):
        driver.begin(driver.new(**changes))

    assert shop.wallet().balance_minor == 0


def test_twenty_requests_at_once_with_one_key_make_one_checkout_and_one_charge(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)

    def check_out() -> tuple[CheckoutId, str]:
        begun = driver.begin(driver.new(), sessions=many)
        assert begun.checkout.charge_id is not None
        driver.run(begun.checkout.charge_id, sessions=many)
        return begun.checkout.checkout_id, "begun"

    with pool_of(shop.sessions, 20) as many:
        found = at_once(*[check_out] * 20)

    assert len(set(map(str, found))) == 1, found
    assert driver.provider.charged() == [700]
    assert signed(shop) == [("manual", 300), ("checkout", -300)]
    assert shop.faults() == []


def test_checkouts_at_once_reserve_the_same_credit_once(shop: Shop, driver: CheckoutDriver) -> None:
    shop.enter(1000)

    with pool_of(shop.sessions, 8) as many:
        begun = at_once(
            *[
                lambda key=f"k{number}": driver.begin(
                    driver.new(300, idempotency_key=key), sessions=many
                )
                for number in range(8)
            ]
        )

    credit = [each.checkout.credit_minor for each in begun if not isinstance(each, Exception)]
    assert sorted(credit) == [0, 0, 0, 0, 100, 300, 300, 300]
    assert shop.faults() == []


def test_a_checkout_that_is_settled_many_times_at_once_is_completed_or_released_once(
    shop: Shop, driver: CheckoutDriver
) -> None:
    shop.enter(300)
    checkout = driver.check_out(1000, "pending")
    charge_id = driver.charge().charge_id

    found = at_once(
        *[lambda: driver.report(charge_id, "failed")] * 2,
        *[lambda: driver.report(charge_id, "succeeded")] * 2,
    )

    assert [error for error in found if error is not None] == []
    is_complete = driver.checkout(checkout.checkout_id).status == "completed"
    assert shop.wallet().balance_minor == (0 if is_complete else 1000)
    assert shop.faults() == []


# --- refusals -------------------------------------------------------------------------------------


def test_a_checkout_that_needs_a_payment_is_refused_without_an_account(shop: Shop) -> None:
    driver = CheckoutDriver(shop)
    with shop.sessions.transaction() as conn:
        conn.execute(
            text("UPDATE provider_accounts SET disabled_at = now() WHERE account_id = :id"),
            {"id": driver.account_id},
        )
    shop.enter(300)

    with pytest.raises(InvalidInputError, match="account_id: there are 0 accounts in use"):
        driver.begin(driver.new())

    assert shop.wallet().balance_minor == 300
    assert driver.check_out(300).status == "completed"


def test_one_of_several_accounts_must_be_named(shop: Shop, driver: CheckoutDriver) -> None:
    second = connect(shop.sessions, shop.business_id)

    with pytest.raises(InvalidInputError, match="there are 2 accounts in use: name one"):
        driver.begin(driver.new())

    assert driver.check_out(account_id=second).account_id == second


def test_an_account_of_another_business_is_not_found(shop: Shop, driver: CheckoutDriver) -> None:
    other = connect(shop.sessions, Shop.open(shop.sessions, shop.buffer, name="B").business_id)

    with pytest.raises(NotFoundError):
        driver.begin(driver.new(account_id=other))


def test_a_missing_wallet_is_refused(driver: CheckoutDriver) -> None:
    with pytest.raises(UnsupportedCurrencyError):
        driver.begin(driver.new(currency="EUR"))


def test_a_missing_checkout_cannot_be_settled(shop: Shop) -> None:
    with pytest.raises(NotFoundError), shop.sessions.transaction() as conn:
        update_checkout(conn, CheckoutId("chk_none"))


def test_verify_names_a_checkout_whose_credit_is_lost(shop: Shop, driver: CheckoutDriver) -> None:
    shop.enter(300)
    checkout = driver.check_out(1000, "pending")
    with shop.sessions.transaction() as conn:
        conn.execute(
            text(
                "UPDATE checkouts SET status = 'failed', ended_at = now(),"
                " release_entry_id = debit_entry_id WHERE checkout_id = :id"
            ),
            {"id": checkout.checkout_id},
        )

    (fault,) = [fault for fault in shop.faults() if checkout.checkout_id in fault.detail]

    assert fault.invariant == "a checkout holds its credit or gave it back"
    with shop.sessions.transaction() as conn:  # for the tests that share the database
        conn.execute(
            text(
                "UPDATE checkouts SET status = 'pending', ended_at = NULL,"
                " release_entry_id = NULL WHERE checkout_id = :id"
            ),
            {"id": checkout.checkout_id},
        )


def test_a_checkout_waits_as_long_as_its_time_to_live(driver: CheckoutDriver) -> None:
    checkout = driver.begin(driver.new(), ttl_s=600).checkout

    assert abs(checkout.expires_at - checkout.created_at - timedelta(seconds=600)).seconds < 60
