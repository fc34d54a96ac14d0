"""Money that goes back takes its credit along, however the vendors tell of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import permutations
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.errors import InvalidInputError, RefundExceedsPaymentError
from support.provider_counter import Till
from support.providers import BEGAN, Dodo, Json, Stripe, Vendor
from support.tenant import Shop, shared_database
from support.tiers import of_tier

BOTH = pytest.mark.parametrize("vendor", [Dodo(), Stripe()], ids=lambda vendor: vendor.name)
Told = Literal["all", "totals", "names"]


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "money_back") as name:
        yield servers.url_of(name)


@pytest.fixture
def till(shop: Shop) -> Till:
    return Till.open(shop, Stripe())


def total(till: Till, amount: int, at: int = 61) -> Json:
    """`charge.refunded` as the API sends it since 2022-11-15: the sum so far, and no list."""
    event = Stripe().refunded_charge(None, till.payment_id, at)
    event["data"]["object"].update(amount_refunded=amount, refunded=amount == 1000)
    return event


def named(
    till: Till, amount: int, refund_id: str, at: int = 60, created: int | None = None, **more: Any
) -> Json:
    """A refund by its own id; `created`: when it was asked for, if that was not at `at`."""
    event = till.refunded(amount, refund_id=f"{refund_id}_{till.payment_id}", at=at, **more)
    event["data"]["object"]["created"] = seconds(at if created is None else created)
    return event


def seconds(at: int) -> int:
    return int((BEGAN + timedelta(seconds=at)).timestamp())


# --- refunded in all ------------------------------------------------------------------------------


def test_a_refunded_charge_that_names_no_refund_takes_the_credit_back(till: Till) -> None:
    said = till.say(till.paid(), total(till, 1000))

    assert said == ["applied"] * 2
    assert till.purchase().status == "reversed"
    assert till.signed() == [("payment", 1000), ("refund", -1000)]
    assert till.shop.faults() == []


def test_a_charge_that_is_refunded_in_steps_takes_each_step(till: Till) -> None:
    till.say(till.paid(), total(till, 250, 61), total(till, 600, 62))

    assert till.signed() == [("payment", 1000), ("refund", -250), ("refund", -350)]


def test_a_total_that_comes_again_or_late_changes_nothing(till: Till) -> None:
    till.say(till.paid(), total(till, 600, 62), total(till, 250, 61), total(till, 600, 62))

    assert till.signed() == [("payment", 1000), ("refund", -600)]


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_a_refund_told_by_name_and_in_all_counts_once_in_any_order(
    till: Till, order: Sequence[int]
) -> None:
    events = [
        till.paid(),
        total(till, 400),
        named(till, 400, "re_1"),
        named(till, 400, "re_1", at=70, type_="charge.refund.updated", created=60),
    ]

    till.say(*[events[number] for number in order])

    assert till.purchase().refunded_minor == 400
    assert till.shop.wallet().balance_minor == 600
    assert till.statuses() == ["applied"] * 4
    assert till.shop.faults() == []


def test_a_refund_that_fails_after_it_was_counted_in_all_gives_the_credit_back(till: Till) -> None:
    till.say(till.paid(), total(till, 400))
    failed = named(till, 400, "re_1", at=500, failed=True, created=60)

    till.say(failed)

    assert till.purchase().status == "settled"
    assert till.signed() == [("payment", 1000), ("refund", -400), ("refund_reversal", 400)]


def test_a_refund_that_had_failed_before_is_in_no_later_total(till: Till) -> None:
    failed = named(till, 400, "re_1", at=100, failed=True, created=60)

    till.say(till.paid(), total(till, 400, 60), failed, total(till, 300, 200))

    assert till.purchase().refunded_minor == 300


def test_a_refund_by_the_shop_that_is_in_the_total_too_counts_once(till: Till) -> None:
    till.say(till.paid())
    till.record_refund("re_1", 400)

    till.say(total(till, 400))

    assert till.purchase().refunded_minor == 400


def test_more_refunds_than_were_paid_are_stored_and_call_back_the_whole_payment(till: Till) -> None:
    till.say(till.paid(), named(till, 600, "re_1"), named(till, 600, "re_2", at=70))

    till.record_refund(f"re_1_{till.payment_id}", 600)

    assert till.purchase().refunded_minor == 1000
    with pytest.raises(RefundExceedsPaymentError, match="0 of the 1000"):
        till.record_refund("re_3", 1)


def test_the_shop_may_name_a_refund_that_a_total_includes_already(till: Till) -> None:
    till.say(till.paid(), total(till, 1000))

    till.record_refund("re_1", 1000)

    assert till.purchase().refunded_minor == 1000


def test_a_parked_payment_is_done_once_all_of_it_is_refunded(till: Till) -> None:
    till.say(till.paid(800))

    till.say(total(till, 800))

    assert till.statuses() == ["applied", "applied"]


RefundEnd = Literal["succeeded", "pending", "failed"]


@dataclass(frozen=True)
class Refund:
    """One refund as it went at the provider, in seconds after the payment."""

    amount: int
    asked_at: int
    end: RefundEnd
    ended_at: int


@st.composite
def histories(draw: st.DrawFn) -> list[Refund]:
    """Refunds are asked for at even seconds, several in one perhaps; they fail at odd ones."""
    refunds: list[Refund] = []
    at = 60
    for _ in range(draw(st.integers(1, 4))):
        at += 2 * draw(st.integers(0, 2))
        end: RefundEnd = draw(st.sampled_from(["succeeded", "pending", "failed"]))
        ended_at = at + 1 + 2 * draw(st.integers(0, 3))
        refunds.append(Refund(draw(st.integers(1, 250)), at, end, ended_at))
    return refunds


def events_of(till: Till, refunds: Sequence[Refund], told: Told) -> list[Json]:
    """What the provider sends of them; `told`: what the shop has asked it to send."""
    sums, names, failures = [], [], []
    for number, refund in enumerate(refunds):
        so_far = [
            earlier.amount
            for earlier in refunds[: number + 1]
            if earlier.end != "failed" or earlier.ended_at > refund.asked_at
        ]
        sums.append(total(till, sum(so_far), refund.asked_at))
        about: dict[str, Any] = {"created": refund.asked_at}
        once = (till, refund.amount, f"re_{number}")
        names.append(named(*once, refund.asked_at, status="pending", **about))
        if refund.end != "pending":
            last = named(*once, refund.ended_at, status=refund.end, type_="refund.updated", **about)
            names.append(last)
            failures += [last] if refund.end == "failed" else []
    return {"all": sums + names, "totals": sums + failures, "names": names}[told]


@settings(
    max_examples=of_tier(20, 60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(refunds=histories(), told=st.sampled_from(["all", "totals", "names"]), data=st.data())
def test_refunds_take_the_same_credit_in_any_order_of_events(
    shop: Shop, refunds: list[Refund], told: Told, data: st.DataObject
) -> None:
    till = Till.open(Shop.open(shop.sessions, shop.buffer), Stripe())
    sent = [till.paid(), *events_of(till, refunds, told)]
    drawn = data.draw(st.lists(st.sampled_from(sent), max_size=3))
    again = [{**event, "id": f"{event['id']}_{n}"} for n, event in enumerate(drawn)]

    till.say(*data.draw(st.permutations([*sent, *again])))

    open_too = told != "names"
    ends = {"succeeded", "pending"} if open_too else {"succeeded"}
    gone = sum(refund.amount for refund in refunds if refund.end in ends)
    assert till.purchase().refunded_minor == gone
    assert till.shop.wallet().balance_minor == 1000 - gone
    assert set(till.statuses()) == {"applied"}
    assert till.shop.faults() == []


# --- accepted by a person -------------------------------------------------------------------------


@BOTH
def test_a_payment_of_less_that_a_person_accepts_is_that_payment(
    shop: Shop, vendor: Vendor
) -> None:
    till = Till.open(shop, vendor)
    assert till.say(till.paid(800)) == ["parked"]

    till.record_payment(till.payment_id)

    bought = till.purchase()
    assert (bought.status, bought.provider, bought.payment_id, bought.paid_minor) == (
        "settled", vendor.name, till.payment_id, 800,
    )  # fmt: skip
    assert (till.statuses(), till.signed()) == (["applied"], [("payment", 1000)])
    assert [payment.parked_reason for payment in till.known().payments] == [None]


@BOTH
def test_refunds_and_disputes_of_an_accepted_payment_count(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)
    till.say(till.paid(800))
    till.record_payment(till.payment_id)

    said = till.say(till.refunded(400), till.disputed("opened", amount=400), till.paid(800))

    assert said == ["applied"] * 3
    assert till.signed() == [("payment", 1000), ("refund", -500)]
    assert (till.purchase().status, shop.wallet().frozen_minor) == ("disputed", 500)
    assert shop.faults() == []


@BOTH
def test_a_payment_is_accepted_once(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)
    till.say(till.paid(800))

    for _ in range(2):
        till.record_payment(till.payment_id)

    assert till.signed() == [("payment", 1000)]


@BOTH
def test_a_payment_that_names_no_purchase_is_accepted_for_one(shop: Shop, vendor: Vendor) -> None:
    till = Till.open(shop, vendor)
    till.say(till.paid(metadata={}), till.refunded(400))

    till.record_payment(till.payment_id)

    assert till.signed() == [("payment", 1000), ("refund", -400)]
    assert till.statuses() == ["applied", "applied"]


@BOTH
@pytest.mark.parametrize("more", [{}, {"metadata": {}}], ids=str)
def test_a_payment_that_was_named_before_its_provider_tells_of_it_is_that_payment(
    shop: Shop, vendor: Vendor, more: dict[str, object]
) -> None:
    till = Till.open(shop, vendor)
    till.record_payment(till.payment_id)
    till.record_refund("re_hand", 100)

    said = till.say(till.paid(800, **more), till.refunded(400))

    bought = till.purchase()
    assert said == ["applied"] * 2
    assert (bought.provider, bought.paid_minor, bought.refunded_minor) == (vendor.name, 800, 625)
    assert [payment.parked_reason for payment in till.known().payments] == [None, None]
    assert shop.faults() == []


def test_a_report_without_a_payment_id_is_refused_while_a_payment_is_parked(till: Till) -> None:
    till.say(till.paid(800))

    with pytest.raises(InvalidInputError) as refused:
        till.record_payment()

    assert till.payment_id in refused.value.problems[0].reason
    assert (till.purchase().status, till.signed()) == ("pending", [])


@pytest.mark.parametrize(
    ("paid", "amount", "reason"),
    [
        ({"amount": 800, "currency": "INR"}, None, "is in INR, not USD"),
        ({"status": "failed"}, None, "has not succeeded: failed"),
        ({"amount": 800}, 1000, "is 800 as stripe reports it"),
    ],
)
def test_a_payment_that_cannot_pay_for_a_purchase_is_refused_with_the_reason(
    till: Till, paid: dict[str, Any], amount: int | None, reason: str
) -> None:
    till.say(till.paid(**paid))

    with pytest.raises(InvalidInputError) as refused:
        till.record_payment(till.payment_id, amount)

    assert refused.value.problems[0].reason == reason
    assert till.signed() == []


def test_a_payment_of_another_purchase_is_refused(shop: Shop, till: Till) -> None:
    other = Till.open(shop, Stripe())
    other.say(other.paid(800))
    other.record_payment(other.payment_id)

    with pytest.raises(InvalidInputError, match="payment_id"):
        till.record_payment(other.payment_id)


def test_a_payment_beside_the_one_that_settled_is_refused(till: Till) -> None:
    till.say(till.paid())
    second = f"{till.payment_id}_2"
    till.say(till.vendor.payment(payment_id=second, metadata=till.mine))

    with pytest.raises(InvalidInputError, match="payment_id"):
        till.record_payment(second)

    assert till.signed() == [("payment", 1000)]


# --- a discount of all of it ----------------------------------------------------------------------


def for_nothing(till: Till) -> Json:
    event = Stripe().session(payment_status="no_payment_required", metadata=till.mine)
    event["data"]["object"].update(
        id=f"cs_{till.payment_id}", payment_intent=None, amount_subtotal=1000, amount_total=0
    )
    return event


def test_a_checkout_that_needed_no_payment_waits_for_a_person_who_accepts_it(till: Till) -> None:
    assert till.say(for_nothing(till)) == ["parked"]
    assert [event.reason for event in till.events()] == ["underpaid"]

    till.record_payment(f"cs_{till.payment_id}")

    assert (till.purchase().status, till.purchase().paid_minor) == ("settled", 0)
    assert (till.statuses(), till.signed()) == (["applied"], [("payment", 1000)])
    assert till.shop.faults() == []


def test_a_checkout_page_that_nobody_paid_on_lets_its_purchase_fail_until_it_is_paid(
    till: Till,
) -> None:
    event = for_nothing(till)
    event["type"] = "checkout.session.expired"
    event["data"]["object"].update(payment_status="unpaid", amount_total=1000)

    assert till.say(event) == ["applied"]
    assert (till.purchase().status, till.purchase().failure) == ("failed", "expired")

    till.say(till.paid())
    assert till.purchase().status == "settled"


# --- disputes -------------------------------------------------------------------------------------


def of_dodo(till: Till, type_: str, amount: object, at: int = 120) -> Json:
    event = till.disputed(type_, dispute_id=f"dp_{till.payment_id}", at=at)
    event["data"]["amount"] = amount
    return event


def test_a_dispute_whose_amount_is_a_number_freezes_and_takes(shop: Shop) -> None:
    till = Till.open(shop, Dodo())

    assert till.say(till.paid(), of_dodo(till, "opened", 400)) == ["applied"] * 2
    assert (till.purchase().status, shop.wallet().frozen_minor) == ("disputed", 1000)

    till.say(of_dodo(till, "lost", 400, at=200))
    assert till.signed() == [("payment", 1000), ("dispute", -400)]


@pytest.mark.parametrize("amount", ["4.00", 4.5, None, "much", [4]], ids=repr)
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_a_dispute_that_is_lost_for_an_unclear_amount_stays_frozen_until_a_person_says_it(
    shop: Shop, amount: object, order: Sequence[int]
) -> None:
    till = Till.open(shop, Dodo())
    events = [
        till.paid(),
        of_dodo(till, "opened", amount),
        of_dodo(till, "lost", amount, at=200),
    ]
    till.say(*[events[number] for number in order])
    till.sweep()

    (parked,) = till.events("parked")
    assert (parked.type, parked.reason) == ("dispute.lost", "unclear_amount")
    assert (till.purchase().status, shop.wallet().frozen_minor) == ("disputed", 1000)

    till.record_dispute(f"dp_{till.payment_id}", "lost", 400)
    till.sweep()
    assert till.statuses() == ["applied"] * 3
    assert till.signed() == [("payment", 1000), ("dispute", -400)]
    assert shop.faults() == []
