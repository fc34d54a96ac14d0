"""A charge is requested with one key and credited once, whatever is lost, killed or late."""

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import pytest

from metering.clock import utc_now
from metering.errors import (
    ConfigurationError,
    GatewayUnavailableError,
    InvalidInputError,
    NotFoundError,
)
from metering.ids import ChargeId
from metering.payment.apply import apply_payments, settle_due
from metering.payment.charges.charge import (
    KEYED_LEASE_S,
    LEASE_S,
    ChargePolicy,
    run_charge,
)
from metering.payment.charges.manual import fail_charge, look_up_charge
from metering.payment.charges.store import page_of_charges
from metering.payment.facts import ReversalFact, note_reversal
from metering.payment.manual import ShopRefund, record_reversal
from metering.payment.vendors.gateway import GatewayAccount, PaymentGateway
from metering.purchase.purchases import Purchase, page_of_purchases
from support.checkout_driver import AT_ONCE, CheckoutDriver, refuses, unavailable
from support.tenant import Shop, at_once, pool_of, shared_database
from support.traffic import wait_for
from worker.session import Sessions


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "charges_made") as name:
        yield servers.url_of(name)


class KilledError(Exception):
    """The process ended at this point."""


def dies_at(name: str) -> Callable[[str], None]:
    def checkpoint(reached: str) -> None:
        if reached == name:
            raise KilledError

    return checkpoint


def top_up(driver: CheckoutDriver, method: str = "ok") -> ChargeId:
    """Order a top-up of a wallet that is low."""
    driver.rule(method=method)
    (charge_id,) = driver.start()
    return charge_id


def begin(driver: CheckoutDriver, method: str | None = "ok") -> ChargeId:
    """Begin a checkout with 700 left to pay."""
    driver.shop.enter(300)
    charge_id = driver.begin(driver.new(1000, method)).checkout.charge_id
    assert charge_id is not None
    return charge_id


# --- amounts paid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_webhook_first", [True, False])
def test_a_refund_takes_its_share_of_a_payment_with_tax_in_any_order_of_reports(
    shop: Shop, driver: CheckoutDriver, *, is_webhook_first: bool
) -> None:
    driver.provider.takes = 590
    charge_id = top_up(driver, "hangs" if is_webhook_first else "ok")
    driver.run(charge_id)
    driver.report(charge_id, amount=590)
    (purchase,) = all_purchases(shop)

    with shop.sessions.transaction() as conn:
        half = ShopRefund(refund_id="re_1", amount=295)
        record_reversal(conn, shop.business_id, purchase.purchase_id, half)

    assert purchase.paid_minor == 590
    assert shop.wallet().balance_minor == 250


def test_a_charge_with_too_small_a_payment_credits_nothing(
    shop: Shop, driver: CheckoutDriver
) -> None:
    driver.provider.takes = 499
    charge_id = top_up(driver)

    driver.run(charge_id)

    (purchase,) = all_purchases(shop)
    assert (purchase.status, shop.wallet().balance_minor) == ("pending", 0)
    assert shop.rows(
        f"SELECT parked_reason FROM payments WHERE business_id = '{shop.business_id}'"
    ) == [("underpaid",)]


def all_purchases(shop: Shop) -> list[Purchase]:
    with shop.sessions.transaction() as conn:
        return page_of_purchases(conn, shop.business_id, page=10)


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["after_claim", "after_charge", "after_record"])
@pytest.mark.parametrize("method", ["ok", "hangs"])
def test_a_top_up_that_is_killed_at_any_point_is_charged_and_credited_once(
    shop: Shop, driver: CheckoutDriver, point: str, method: str
) -> None:
    charge_id = top_up(driver, method)

    with pytest.raises(KilledError):
        driver.run(charge_id, checkpoint=dies_at(point))
    for _ in range(3):
        driver.sweep()

    assert driver.provider.charged() == [500]
    assert [entry.amount_minor for entry in shop.entries()] == [500]
    assert driver.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


@pytest.mark.parametrize("point", ["after_claim", "after_charge", "after_record"])
@pytest.mark.parametrize("method", ["ok", "hangs"])
def test_a_checkout_that_is_killed_at_any_point_is_charged_and_completed_once(
    shop: Shop, driver: CheckoutDriver, point: str, method: str
) -> None:
    charge_id = begin(driver, method)

    with pytest.raises(KilledError):
        driver.run(charge_id, checkpoint=dies_at(point))
    for _ in range(3):
        driver.sweep()

    assert driver.provider.charged() == [700]
    assert [entry.kind for entry in shop.entries()] == ["checkout", "manual"]
    assert driver.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


@pytest.mark.parametrize("point", ["after_claim", "after_charge", "after_record"])
def test_a_decline_that_is_killed_at_any_point_is_counted_once(
    shop: Shop, driver: CheckoutDriver, point: str
) -> None:
    charge_id = top_up(driver, "declined")

    with pytest.raises(KilledError):
        driver.run(charge_id, checkpoint=dies_at(point))
    for _ in range(3):
        driver.sweep()

    assert driver.top_up_rule().declines == 1
    assert len(driver.notices()) == 1
    assert shop.faults() == []


def test_a_claim_ends_with_its_lease_if_the_process_dies(driver: CheckoutDriver) -> None:
    charge_id = top_up(driver)
    leased = ChargePolicy()

    with pytest.raises(KilledError):
        driver.run(charge_id, policy=leased, checkpoint=dies_at("after_claim"))

    assert not driver.run(charge_id, policy=leased)
    driver.age(charge_id, 0)
    assert driver.run(charge_id, policy=leased)
    assert driver.provider.calls == [("repeat", charge_id)]


def due_in_s(driver: CheckoutDriver, charge_id: ChargeId) -> int:
    ((rest_s,),) = driver.shop.rows(
        "SELECT extract(epoch FROM due_at - now())::integer FROM charges"
        f" WHERE charge_id = '{charge_id}'"
    )
    return int(str(rest_s))


@pytest.mark.parametrize(
    ("provider", "lease_s"),
    [("stripe", KEYED_LEASE_S), ("dodo", LEASE_S)],
)
def test_a_lease_is_short_if_the_provider_has_idempotency_keys(
    shop: Shop, driver: CheckoutDriver, provider: str, lease_s: int
) -> None:
    charge_id = top_up(driver)
    shop.run(
        f"UPDATE provider_accounts SET provider = '{provider}'"
        f" WHERE account_id = '{driver.account_id}'"
    )

    with pytest.raises(KilledError):
        driver.run(charge_id, policy=ChargePolicy(), checkpoint=dies_at("after_claim"))

    assert lease_s - 10 <= due_in_s(driver, charge_id) <= lease_s


# --- no answer ------------------------------------------------------------------------------------


def test_a_lost_answer_is_requested_again_with_the_same_key(driver: CheckoutDriver) -> None:
    charge_id = begin(driver, "hangs")

    driver.run(charge_id)
    driver.sweep()

    assert driver.provider.calls == [("start", charge_id), ("repeat", charge_id)]
    assert driver.provider.charged() == [700]


def test_the_next_attempt_waits_twice_as_long(driver: CheckoutDriver) -> None:
    charge_id = begin(driver)
    policy = ChargePolicy(retry_s=100, retry_max_s=300)
    driver.provider.before = unavailable

    waits = []
    for _ in range(4):
        driver.age(charge_id, 0)
        driver.run(charge_id, policy=policy)
        ((wait_s,),) = driver.shop.rows(
            "SELECT round(extract(epoch FROM due_at - updated_at)) FROM charges"
            f" WHERE charge_id = '{charge_id}'"
        )
        waits.append(wait_s)

    assert waits == [100, 200, 300, 300]


def test_a_charge_without_an_answer_for_too_long_is_parked_and_does_not_fail(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = begin(driver, "hangs")
    driver.provider.before = unavailable
    driver.run(charge_id)
    driver.age(charge_id, AT_ONCE.ask_for_s + 1)

    driver.sweep()
    driver.provider.before = lambda _call: None
    driver.sweep()

    charge = driver.charge(charge_id)
    assert (charge.status, charge.is_parked) == ("new", True)
    assert str(charge.failure).startswith("no answer for ")
    assert charge.checkout_id is not None
    assert driver.checkout(charge.checkout_id).status == "pending"
    assert shop.wallet().balance_minor == 0
    with shop.sessions.transaction() as conn:
        assert page_of_charges(conn, shop.business_id, page=9, is_parked=True) == [charge]


def test_a_parked_charge_follows_a_webhook(shop: Shop, driver: CheckoutDriver) -> None:
    charge_id = top_up(driver, "hangs")
    driver.run(charge_id)
    driver.age(charge_id, AT_ONCE.ask_for_s + 1)
    driver.sweep()
    assert driver.charge(charge_id).is_parked

    driver.report(charge_id)

    assert driver.charge(charge_id).status == "succeeded"
    assert shop.wallet().balance_minor == 500
    assert driver.top_up_rule().pending_purchase_id is None
    assert shop.faults() == []


def test_a_charge_that_stays_pending_is_looked_up_for_a_while_and_then_parked(
    driver: CheckoutDriver,
) -> None:
    charge_id = top_up(driver, "pending")
    driver.run(charge_id)
    driver.sweep()
    driver.age(charge_id, AT_ONCE.look_up_for_s + 1)

    driver.sweep()
    driver.sweep()

    assert driver.charge(charge_id).is_parked
    assert driver.provider.calls == [("start", charge_id), ("look_up", charge_id)]


def test_a_charge_is_credited_without_its_webhook(shop: Shop, driver: CheckoutDriver) -> None:
    charge_id = top_up(driver, "pending")
    driver.run(charge_id)
    assert shop.entries() == [], "pending is never success"

    driver.provider.end(charge_id, "succeeded")
    driver.sweep()

    assert shop.wallet().balance_minor == 500
    assert shop.faults() == []


def test_a_charge_is_tried_again_after_a_fault_of_the_gateway(driver: CheckoutDriver) -> None:
    def breaks(_call: str) -> None:
        raise ZeroDivisionError

    charge_id = begin(driver)
    driver.provider.before = breaks
    with pytest.raises(ZeroDivisionError):
        driver.run(charge_id)
    driver.provider.before = lambda _call: None

    driver.sweep()

    assert driver.charge(charge_id).status == "succeeded"


# --- refused --------------------------------------------------------------------------------------


def test_a_charge_whose_repetition_is_refused_fails_if_the_provider_has_no_payment(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = begin(driver, "refused")
    driver.provider.before = unavailable
    driver.run(charge_id)
    driver.provider.before = lambda _call: None

    driver.sweep()

    assert driver.provider.calls[-2:] == [("repeat", charge_id), ("look_up", charge_id)]
    assert driver.charge(charge_id).status == "failed"
    assert shop.wallet().balance_minor == 300


def test_a_charge_whose_repetition_is_refused_succeeds_if_the_provider_has_its_payment(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = begin(driver, "hangs")
    driver.run(charge_id)
    driver.provider.before = lambda call: refuses(call) if call == "start" else None

    driver.sweep()

    assert driver.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


def test_a_charge_is_parked_if_the_look_up_is_refused_too(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = begin(driver, "hangs")
    driver.run(charge_id)
    driver.provider.before = refuses

    driver.sweep()

    charge = driver.charge(charge_id)
    assert (charge.is_parked, charge.failure) == (True, "the API key was revoked")
    assert shop.wallet().balance_minor == 0


def test_a_disabled_account_is_not_called(shop: Shop, driver: CheckoutDriver) -> None:
    charge_id = begin(driver)
    driver._change(
        "UPDATE provider_accounts SET disabled_at = now() WHERE account_id = :id", driver.account_id
    )

    driver.sweep()

    charge = driver.charge(charge_id)
    assert (charge.status, charge.failure) == ("failed", "account_disabled")
    assert driver.provider.calls == []
    assert shop.wallet().balance_minor == 300


def test_the_first_request_fails_if_the_account_is_not_set_up(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = begin(driver)

    run_charge(shop.sessions.transaction, not_set_up, charge_id, AT_ONCE)

    charge = driver.charge(charge_id)
    assert (charge.status, charge.failure) == ("failed", "the account has no key")
    assert shop.wallet().balance_minor == 300


def test_a_repeated_request_waits_if_the_account_is_no_longer_set_up(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = begin(driver, "hangs")
    driver.run(charge_id)

    run_charge(shop.sessions.transaction, not_set_up, charge_id, AT_ONCE)
    driver.sweep()

    assert driver.charge(charge_id).status == "succeeded"


def not_set_up(_account: GatewayAccount) -> PaymentGateway:
    raise ConfigurationError("the account has no key")


# --- at once --------------------------------------------------------------------------------------


def test_only_one_of_many_runs_at_once_calls_the_provider(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = top_up(driver)

    with pool_of(shop.sessions, 8) as many:
        found = at_once(*[lambda: driver.run(charge_id, policy=ChargePolicy(), sessions=many)] * 8)

    assert sorted(map(str, found)) == ["False"] * 7 + ["True"]
    assert len(driver.provider.calls) == 1
    assert shop.wallet().balance_minor == 500


def test_an_answer_and_webhooks_at_once_credit_once(shop: Shop, driver: CheckoutDriver) -> None:
    charge_id = top_up(driver, "pending")
    driver.run(charge_id)
    driver.provider.end(charge_id, "succeeded")
    driver.age(charge_id, 0)

    with pool_of(shop.sessions, 12) as many:
        works: list[Callable[[], object]] = [
            *[lambda: driver.run(charge_id, sessions=many)] * 6,
            *[lambda: driver.report(charge_id)] * 2,
        ]
        found = at_once(*works)

    assert [each for each in found if isinstance(each, Exception)] == []
    assert [entry.amount_minor for entry in shop.entries()] == [500]
    assert driver.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


def test_a_webhook_between_claim_and_record_is_not_forgotten(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = top_up(driver, "pending")

    def webhook(reached: str) -> None:
        if reached == "after_charge":
            driver.report(charge_id, settles=False)

    driver.run(charge_id, policy=ChargePolicy(), checkpoint=webhook)
    driver.sweep()

    assert driver.charge(charge_id).status == "succeeded"
    assert shop.wallet().balance_minor == 500


def test_a_webhook_before_the_charge_is_parked_is_not_forgotten(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = top_up(driver, "pending")
    driver.run(charge_id)
    driver.provider.before = refuses

    def webhook(reached: str) -> None:
        if reached == "after_charge":
            driver.report(charge_id, settles=False)

    driver.run(charge_id, checkpoint=webhook)

    assert driver.charge(charge_id).status == "succeeded"
    assert shop.wallet().balance_minor == 500


def test_a_charge_does_not_fail_while_another_of_its_payments_is_pending(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = top_up(driver, "declined")
    driver.report(charge_id, "pending", payment_id="pay_other")

    driver.run(charge_id, policy=ChargePolicy())

    assert driver.charge(charge_id).is_open
    assert not driver.run(charge_id, policy=ChargePolicy()), "it is not requested all the time"
    driver.report(charge_id, payment_id="pay_other")
    assert driver.charge(charge_id).status == "succeeded"
    assert shop.wallet().balance_minor == 500
    assert shop.faults() == []


def test_a_process_that_resumes_after_its_lease_does_not_touch_the_next_claim(
    driver: CheckoutDriver,
) -> None:
    charge_id = begin(driver)
    driver.provider.before = unavailable
    leased = ChargePolicy()

    def another(reached: str) -> None:
        if reached == "after_charge":
            driver.age(charge_id, 0)
            with pytest.raises(KilledError):
                driver.run(charge_id, policy=leased, checkpoint=dies_at("after_claim"))

    driver.run(charge_id, policy=leased, checkpoint=another)

    assert due_in_s(driver, charge_id) > leased.retry_s


# --- locks ----------------------------------------------------------------------------------------


def test_facts_and_settling_lock_a_charge_and_its_purchase_in_one_order(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = top_up(driver, "pending")
    driver.run(charge_id)
    purchase_id = driver.charge(charge_id).purchase_id
    assert purchase_id is not None
    payment_id = driver.provider.payments[charge_id].payment_id
    driver.report(charge_id, "pending")

    refund = ReversalFact(
        provider="stripe", kind="refund", reversal_id="re_1", payment_id=payment_id,
        status="succeeded", occurred_at=utc_now(), amount_minor=1,
    )  # fmt: skip
    is_noted = Event()

    def follow_facts(many: Sessions) -> None:
        with many.transaction() as conn:
            paid_for = note_reversal(conn, shop.business_id, refund)
            is_noted.set()
            wait_for(lambda: shop.rows(WAITS) == [(1,)])
            apply_payments(conn, paid_for)

    def settle(many: Sessions) -> None:
        assert is_noted.wait(30)
        with many.transaction() as conn:
            settle_due(conn, purchase_id)

    with pool_of(shop.sessions, 2) as many:
        found = at_once(lambda: follow_facts(many), lambda: settle(many))

    assert found == [None, None]


WAITS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock'"
)


# --- by hand --------------------------------------------------------------------------------------


def park(driver: CheckoutDriver, method: str) -> ChargeId:
    charge_id = begin(driver, method)
    if method == "ok":
        driver.provider.before = unavailable
    driver.run(charge_id)
    driver.age(charge_id, AT_ONCE.ask_for_s + 1)
    driver.sweep()
    driver.provider.before = lambda _call: None
    assert driver.charge(charge_id).is_parked
    return charge_id


def test_an_operator_finds_the_payment_of_a_parked_charge(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = park(driver, "hangs")

    answer = look_up_charge(shop.sessions.transaction, driver.provider, shop.business_id, charge_id)

    assert answer is not None
    assert answer.status == "succeeded"
    assert driver.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


def test_an_operator_fails_a_charge_without_a_payment(shop: Shop, driver: CheckoutDriver) -> None:
    charge_id = park(driver, "ok")
    answer = look_up_charge(shop.sessions.transaction, driver.provider, shop.business_id, charge_id)

    with shop.sessions.transaction() as conn:
        charge = fail_charge(conn, shop.business_id, charge_id, "not in their list")

    assert answer is None
    assert (charge.status, charge.failure) == ("failed", "not in their list")
    assert shop.wallet().balance_minor == 300
    assert shop.faults() == []


def test_an_operator_fails_only_a_parked_charge(shop: Shop, driver: CheckoutDriver) -> None:
    charge_id = begin(driver)

    with (
        pytest.raises(InvalidInputError, match="still requested"),
        shop.sessions.transaction() as conn,
    ):
        fail_charge(conn, shop.business_id, charge_id, "impatience")

    driver.run(charge_id)
    with pytest.raises(InvalidInputError, match="has ended: succeeded"):
        look_up_charge(shop.sessions.transaction, driver.provider, shop.business_id, charge_id)


def test_a_charge_of_another_business_is_not_found(shop: Shop, driver: CheckoutDriver) -> None:
    charge_id = begin(driver)
    other = Shop.open(shop.sessions, shop.buffer, name="Other")

    with pytest.raises(NotFoundError):
        look_up_charge(shop.sessions.transaction, driver.provider, other.business_id, charge_id)


def test_the_error_of_a_look_up_names_a_provider_that_is_away(
    shop: Shop, driver: CheckoutDriver
) -> None:
    charge_id = park(driver, "hangs")
    driver.provider.before = unavailable

    with pytest.raises(GatewayUnavailableError):
        look_up_charge(shop.sessions.transaction, driver.provider, shop.business_id, charge_id)
