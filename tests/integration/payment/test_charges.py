"""A charge is asked for with one key, whatever is lost, killed or late; it is credited once."""

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
from support.checkout_driver import AT_ONCE, Till, refuses, unavailable
from support.tenant import Shop, at_once, crowd, shared_database
from support.traffic import wait_for
from worker.session import Sessions


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "charges_made") as name:
        yield servers.url_of(name)


class KilledError(Exception):
    """Nothing after this point was done."""


def dies_at(name: str) -> Callable[[str], None]:
    def checkpoint(reached: str) -> None:
        if reached == name:
            raise KilledError

    return checkpoint


def top_up(till: Till, method: str = "ok") -> ChargeId:
    """Order a top-up of a wallet that is low."""
    till.rule(method=method)
    (charge_id,) = till.start()
    return charge_id


def begin(till: Till, method: str | None = "ok") -> ChargeId:
    """Begin a checkout of which 700 are to be paid."""
    till.shop.enter(300)
    charge_id = till.begin(till.new(1000, method)).checkout.charge_id
    assert charge_id is not None
    return charge_id


# --- what was paid --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_told_first", [True, False])
def test_a_refund_is_its_share_of_the_payment_with_tax_whoever_reports_it_first(
    shop: Shop, till: Till, *, is_told_first: bool
) -> None:
    till.provider.takes = 590
    charge_id = top_up(till, "hangs" if is_told_first else "ok")
    till.run(charge_id)
    till.tell(charge_id, amount=590)
    (purchase,) = all_purchases(shop)

    with shop.sessions.transaction() as conn:
        half = ShopRefund(refund_id="re_1", amount=295)
        record_reversal(conn, shop.business_id, purchase.purchase_id, half)

    assert purchase.paid_minor == 590
    assert shop.wallet().balance_minor == 250


def test_a_charge_of_which_too_little_was_taken_credits_nothing(shop: Shop, till: Till) -> None:
    till.provider.takes = 499
    charge_id = top_up(till)

    till.run(charge_id)

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
def test_a_top_up_that_is_killed_anywhere_is_charged_and_credited_once(
    shop: Shop, till: Till, point: str, method: str
) -> None:
    charge_id = top_up(till, method)

    with pytest.raises(KilledError):
        till.run(charge_id, checkpoint=dies_at(point))
    for _ in range(3):
        till.sweep()

    assert till.provider.charged() == [500]
    assert [entry.amount_minor for entry in shop.entries()] == [500]
    assert till.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


@pytest.mark.parametrize("point", ["after_claim", "after_charge", "after_record"])
@pytest.mark.parametrize("method", ["ok", "hangs"])
def test_a_checkout_that_is_killed_anywhere_is_charged_and_completed_once(
    shop: Shop, till: Till, point: str, method: str
) -> None:
    charge_id = begin(till, method)

    with pytest.raises(KilledError):
        till.run(charge_id, checkpoint=dies_at(point))
    for _ in range(3):
        till.sweep()

    assert till.provider.charged() == [700]
    assert [entry.kind for entry in shop.entries()] == ["checkout", "manual"]
    assert till.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


@pytest.mark.parametrize("point", ["after_claim", "after_charge", "after_record"])
def test_a_decline_that_is_killed_anywhere_is_counted_once(
    shop: Shop, till: Till, point: str
) -> None:
    charge_id = top_up(till, "declined")

    with pytest.raises(KilledError):
        till.run(charge_id, checkpoint=dies_at(point))
    for _ in range(3):
        till.sweep()

    assert till.standing().declines == 1
    assert len(till.notices()) == 1
    assert shop.faults() == []


def test_a_claim_ends_with_its_lease_if_the_process_dies(till: Till) -> None:
    charge_id = top_up(till)
    leased = ChargePolicy()

    with pytest.raises(KilledError):
        till.run(charge_id, policy=leased, checkpoint=dies_at("after_claim"))

    assert not till.run(charge_id, policy=leased)
    till.age(charge_id, 0)
    assert till.run(charge_id, policy=leased)
    assert till.provider.calls == [("repeat", charge_id)]


def due_in_s(till: Till, charge_id: ChargeId) -> int:
    ((rest_s,),) = till.shop.rows(
        "SELECT extract(epoch FROM due_at - now())::integer FROM charges"
        f" WHERE charge_id = '{charge_id}'"
    )
    return int(str(rest_s))


@pytest.mark.parametrize(
    ("provider", "lease_s"),
    [("stripe", KEYED_LEASE_S), ("dodo", LEASE_S)],
)
def test_a_lease_is_short_where_the_provider_makes_one_payment_of_two_calls(
    shop: Shop, till: Till, provider: str, lease_s: int
) -> None:
    charge_id = top_up(till)
    shop.run(
        f"UPDATE provider_accounts SET provider = '{provider}'"
        f" WHERE account_id = '{till.account_id}'"
    )

    with pytest.raises(KilledError):
        till.run(charge_id, policy=ChargePolicy(), checkpoint=dies_at("after_claim"))

    assert lease_s - 10 <= due_in_s(till, charge_id) <= lease_s


# --- no answer ------------------------------------------------------------------------------------


def test_a_lost_answer_is_requested_again_with_the_same_key(till: Till) -> None:
    charge_id = begin(till, "hangs")

    till.run(charge_id)
    till.sweep()

    assert till.provider.calls == [("start", charge_id), ("repeat", charge_id)]
    assert till.provider.charged() == [700]


def test_the_next_attempt_waits_twice_as_long(till: Till) -> None:
    charge_id = begin(till)
    policy = ChargePolicy(retry_s=100, retry_max_s=300)
    till.provider.before = unavailable

    waits = []
    for _ in range(4):
        till.age(charge_id, 0)
        till.run(charge_id, policy=policy)
        ((wait_s,),) = till.shop.rows(
            "SELECT round(extract(epoch FROM due_at - updated_at)) FROM charges"
            f" WHERE charge_id = '{charge_id}'"
        )
        waits.append(wait_s)

    assert waits == [100, 200, 300, 300]


def test_without_an_answer_for_too_long_it_is_parked_and_nothing_fails(
    shop: Shop, till: Till
) -> None:
    charge_id = begin(till, "hangs")
    till.provider.before = unavailable
    till.run(charge_id)
    till.age(charge_id, AT_ONCE.ask_for_s + 1)

    till.sweep()
    till.provider.before = lambda _call: None
    till.sweep()

    charge = till.charge(charge_id)
    assert (charge.status, charge.is_parked) == ("new", True)
    assert str(charge.failure).startswith("no answer for ")
    assert charge.checkout_id is not None
    assert till.checkout(charge.checkout_id).status == "pending"
    assert shop.wallet().balance_minor == 0
    with shop.sessions.transaction() as conn:
        assert page_of_charges(conn, shop.business_id, page=9, is_parked=True) == [charge]


def test_a_parked_charge_follows_a_webhook(shop: Shop, till: Till) -> None:
    charge_id = top_up(till, "hangs")
    till.run(charge_id)
    till.age(charge_id, AT_ONCE.ask_for_s + 1)
    till.sweep()
    assert till.charge(charge_id).is_parked

    till.tell(charge_id)

    assert till.charge(charge_id).status == "succeeded"
    assert shop.wallet().balance_minor == 500
    assert till.standing().pending_purchase_id is None
    assert shop.faults() == []


def test_one_that_stays_pending_is_looked_up_for_a_while_and_then_parked(till: Till) -> None:
    charge_id = top_up(till, "pending")
    till.run(charge_id)
    till.sweep()
    till.age(charge_id, AT_ONCE.look_up_for_s + 1)

    till.sweep()
    till.sweep()

    assert till.charge(charge_id).is_parked
    assert till.provider.calls == [("start", charge_id), ("look_up", charge_id)]


def test_a_lost_webhook_costs_only_time(shop: Shop, till: Till) -> None:
    charge_id = top_up(till, "pending")
    till.run(charge_id)
    assert shop.entries() == [], "pending is never success"

    till.provider.end(charge_id, "succeeded")
    till.sweep()

    assert shop.wallet().balance_minor == 500
    assert shop.faults() == []


def test_a_fault_of_the_gateway_leaves_the_charge_to_be_tried_again(till: Till) -> None:
    def breaks(_call: str) -> None:
        raise ZeroDivisionError

    charge_id = begin(till)
    till.provider.before = breaks
    with pytest.raises(ZeroDivisionError):
        till.run(charge_id)
    till.provider.before = lambda _call: None

    till.sweep()

    assert till.charge(charge_id).status == "succeeded"


# --- refused --------------------------------------------------------------------------------------


def test_a_repetition_that_is_refused_fails_if_the_provider_knows_of_no_charge(
    shop: Shop, till: Till
) -> None:
    charge_id = begin(till, "refused")
    till.provider.before = unavailable
    till.run(charge_id)
    till.provider.before = lambda _call: None

    till.sweep()

    assert till.provider.calls[-2:] == [("repeat", charge_id), ("look_up", charge_id)]
    assert till.charge(charge_id).status == "failed"
    assert shop.wallet().balance_minor == 300


def test_a_repetition_that_is_refused_is_believed_if_it_was_charged_before(
    shop: Shop, till: Till
) -> None:
    charge_id = begin(till, "hangs")
    till.run(charge_id)
    till.provider.before = lambda call: refuses(call) if call == "start" else None

    till.sweep()

    assert till.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


def test_where_not_even_the_look_up_is_allowed_it_is_parked(shop: Shop, till: Till) -> None:
    charge_id = begin(till, "hangs")
    till.run(charge_id)
    till.provider.before = refuses

    till.sweep()

    charge = till.charge(charge_id)
    assert (charge.is_parked, charge.failure) == (True, "the API key was revoked")
    assert shop.wallet().balance_minor == 0


def test_a_disabled_account_is_not_called(shop: Shop, till: Till) -> None:
    charge_id = begin(till)
    till._change(
        "UPDATE provider_accounts SET disabled_at = now() WHERE account_id = :id", till.account_id
    )

    till.sweep()

    charge = till.charge(charge_id)
    assert (charge.status, charge.failure) == ("failed", "account_disabled")
    assert till.provider.calls == []
    assert shop.wallet().balance_minor == 300


def test_an_account_that_is_not_set_up_fails_a_first_request(shop: Shop, till: Till) -> None:
    charge_id = begin(till)

    run_charge(shop.sessions.transaction, not_set_up, charge_id, AT_ONCE)

    charge = till.charge(charge_id)
    assert (charge.status, charge.failure) == ("failed", "the account has no key")
    assert shop.wallet().balance_minor == 300


def test_an_account_that_is_not_set_up_any_more_is_waited_for(shop: Shop, till: Till) -> None:
    charge_id = begin(till, "hangs")
    till.run(charge_id)

    run_charge(shop.sessions.transaction, not_set_up, charge_id, AT_ONCE)
    till.sweep()

    assert till.charge(charge_id).status == "succeeded"


def not_set_up(_account: GatewayAccount) -> PaymentGateway:
    raise ConfigurationError("the account has no key")


# --- at once --------------------------------------------------------------------------------------


def test_of_many_runs_at_once_one_asks(shop: Shop, till: Till) -> None:
    charge_id = top_up(till)

    with crowd(shop.sessions, 8) as many:
        found = at_once(*[lambda: till.run(charge_id, policy=ChargePolicy(), sessions=many)] * 8)

    assert sorted(map(str, found)) == ["False"] * 7 + ["True"]
    assert len(till.provider.calls) == 1
    assert shop.wallet().balance_minor == 500


def test_answers_and_webhooks_at_once_credit_once(shop: Shop, till: Till) -> None:
    charge_id = top_up(till, "pending")
    till.run(charge_id)
    till.provider.end(charge_id, "succeeded")
    till.age(charge_id, 0)

    with crowd(shop.sessions, 12) as many:
        works: list[Callable[[], object]] = [
            *[lambda: till.run(charge_id, sessions=many)] * 6,
            *[lambda: till.tell(charge_id)] * 2,
        ]
        found = at_once(*works)

    assert [each for each in found if isinstance(each, Exception)] == []
    assert [entry.amount_minor for entry in shop.entries()] == [500]
    assert till.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


def test_a_webhook_between_claim_and_record_is_not_forgotten(shop: Shop, till: Till) -> None:
    charge_id = top_up(till, "pending")

    def webhook(reached: str) -> None:
        if reached == "after_charge":
            till.tell(charge_id, settles=False)

    till.run(charge_id, policy=ChargePolicy(), checkpoint=webhook)
    till.sweep()

    assert till.charge(charge_id).status == "succeeded"
    assert shop.wallet().balance_minor == 500


def test_a_webhook_before_the_charge_is_parked_is_not_forgotten(shop: Shop, till: Till) -> None:
    charge_id = top_up(till, "pending")
    till.run(charge_id)
    till.provider.before = refuses

    def webhook(reached: str) -> None:
        if reached == "after_charge":
            till.tell(charge_id, settles=False)

    till.run(charge_id, checkpoint=webhook)

    assert till.charge(charge_id).status == "succeeded"
    assert shop.wallet().balance_minor == 500


def test_while_another_payment_of_it_is_pending_a_failure_is_not_the_end(
    shop: Shop, till: Till
) -> None:
    charge_id = top_up(till, "declined")
    till.tell(charge_id, "pending", payment_id="pay_other")

    till.run(charge_id, policy=ChargePolicy())

    assert till.charge(charge_id).is_open
    assert not till.run(charge_id, policy=ChargePolicy()), "it is not asked for all the time"
    till.tell(charge_id, payment_id="pay_other")
    assert till.charge(charge_id).status == "succeeded"
    assert shop.wallet().balance_minor == 500
    assert shop.faults() == []


def test_a_process_that_returns_after_its_lease_leaves_the_next_claim_alone(till: Till) -> None:
    charge_id = begin(till)
    till.provider.before = unavailable
    leased = ChargePolicy()

    def another(reached: str) -> None:
        if reached == "after_charge":
            till.age(charge_id, 0)
            with pytest.raises(KilledError):
                till.run(charge_id, policy=leased, checkpoint=dies_at("after_claim"))

    till.run(charge_id, policy=leased, checkpoint=another)

    assert due_in_s(till, charge_id) > leased.retry_s


# --- locks ----------------------------------------------------------------------------------------


def test_facts_and_settling_lock_a_charge_and_its_purchase_in_one_order(
    shop: Shop, till: Till
) -> None:
    charge_id = top_up(till, "pending")
    till.run(charge_id)
    purchase_id = till.charge(charge_id).purchase_id
    assert purchase_id is not None
    payment_id = till.provider.payments[charge_id].payment_id
    till.tell(charge_id, "pending")

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

    with crowd(shop.sessions, 2) as many:
        found = at_once(lambda: follow_facts(many), lambda: settle(many))

    assert found == [None, None]


WAITS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock'"
)


# --- by hand --------------------------------------------------------------------------------------


def park(till: Till, method: str) -> ChargeId:
    charge_id = begin(till, method)
    if method == "ok":
        till.provider.before = unavailable
    till.run(charge_id)
    till.age(charge_id, AT_ONCE.ask_for_s + 1)
    till.sweep()
    till.provider.before = lambda _call: None
    assert till.charge(charge_id).is_parked
    return charge_id


def test_an_operator_finds_the_payment_of_a_parked_charge(shop: Shop, till: Till) -> None:
    charge_id = park(till, "hangs")

    answer = look_up_charge(shop.sessions.transaction, till.provider, shop.business_id, charge_id)

    assert answer is not None
    assert answer.status == "succeeded"
    assert till.charge(charge_id).status == "succeeded"
    assert shop.faults() == []


def test_an_operator_fails_a_charge_without_a_payment(shop: Shop, till: Till) -> None:
    charge_id = park(till, "ok")
    answer = look_up_charge(shop.sessions.transaction, till.provider, shop.business_id, charge_id)

    with shop.sessions.transaction() as conn:
        charge = fail_charge(conn, shop.business_id, charge_id, "not in their list")

    assert answer is None
    assert (charge.status, charge.failure) == ("failed", "not in their list")
    assert shop.wallet().balance_minor == 300
    assert shop.faults() == []


def test_an_operator_fails_only_a_parked_charge(shop: Shop, till: Till) -> None:
    charge_id = begin(till)

    with (
        pytest.raises(InvalidInputError, match="still requested"),
        shop.sessions.transaction() as conn,
    ):
        fail_charge(conn, shop.business_id, charge_id, "impatience")

    till.run(charge_id)
    with pytest.raises(InvalidInputError, match="has ended: succeeded"):
        look_up_charge(shop.sessions.transaction, till.provider, shop.business_id, charge_id)


def test_a_charge_of_another_business_is_not_found(shop: Shop, till: Till) -> None:
    charge_id = begin(till)
    other = Shop.open(shop.sessions, shop.buffer, name="Other")

    with pytest.raises(NotFoundError):
        look_up_charge(shop.sessions.transaction, till.provider, other.business_id, charge_id)


def test_a_look_up_names_a_provider_that_is_away(shop: Shop, till: Till) -> None:
    charge_id = park(till, "hangs")
    till.provider.before = unavailable

    with pytest.raises(GatewayUnavailableError):
        look_up_charge(shop.sessions.transaction, till.provider, shop.business_id, charge_id)
