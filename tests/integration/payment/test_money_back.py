"""Refunds and disputes take credit back, in every form in which the vendors report them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import permutations
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.errors import InvalidInputError, RefundExceedsPaymentError
from support.provider_driver import ProviderDriver
from support.providers import BEGAN, Dodo, Json, Stripe, Vendor
from support.tenant import Shop, shared_database
from support.tiers import of_tier

BOTH = pytest.mark.parametrize("vendor", [Dodo(), Stripe()], ids=lambda vendor: vendor.name)
Subscribed = Literal["all", "totals", "names"]


@pytest.fixture(scope="module")
def database_url(servers: Any) -> Iterator[str]:
    """One database for all tests here: each has a business of its own."""
    with shared_database(servers.execute, servers.template, "money_back") as name:
        yield servers.url_of(name)


@pytest.fixture
def driver(shop: Shop) -> ProviderDriver:
    return ProviderDriver.open(shop, Stripe())


def total(driver: ProviderDriver, amount: int, at: int = 61) -> Json:
    """`charge.refunded` as the API sends it since 2022-11-15: the sum so far, and no list."""
    event = Stripe().refunded_charge(None, driver.payment_id, at)
    event["data"]["object"].update(amount_refunded=amount, refunded=amount == 1000)
    return event


def named(
    driver: ProviderDriver,
    amount: int,
    refund_id: str,
    at: int = 60,
    created: int | None = None,
    **more: Any,
) -> Json:
    """A refund by its own id; `created`: when it was requested, if not at `at`."""
    event = driver.refunded(amount, refund_id=f"{refund_id}_{driver.payment_id}", at=at, **more)
    event["data"]["object"]["created"] = seconds(at if created is None else created)
    return event


def seconds(at: int) -> int:
    return int((BEGAN + timedelta(seconds=at)).timestamp())


# --- totals of refunds ----------------------------------------------------------------------------


def test_a_total_without_a_list_of_refunds_takes_the_credit_back(driver: ProviderDriver) -> None:
    statuses = driver.report(driver.paid(), total(driver, 1000))

    assert statuses == ["applied"] * 2
    assert driver.purchase().status == "reversed"
    assert driver.signed() == [("payment", 1000), ("refund", -1000)]
    assert driver.shop.faults() == []


def test_each_growth_of_the_total_takes_credit_back(driver: ProviderDriver) -> None:
    driver.report(driver.paid(), total(driver, 250, 61), total(driver, 600, 62))

    assert driver.signed() == [("payment", 1000), ("refund", -250), ("refund", -350)]


def test_a_repeated_or_late_total_changes_nothing(driver: ProviderDriver) -> None:
    driver.report(
        driver.paid(), total(driver, 600, 62), total(driver, 250, 61), total(driver, 600, 62)
    )

    assert driver.signed() == [("payment", 1000), ("refund", -600)]


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_a_refund_by_id_and_in_a_total_counts_once_in_any_order(
    driver: ProviderDriver, order: Sequence[int]
) -> None:
    events = [
        driver.paid(),
        total(driver, 400),
        named(driver, 400, "re_1"),
        named(driver, 400, "re_1", at=70, type_="charge.refund.updated", created=60),
    ]

    driver.report(*[events[number] for number in order])

    assert driver.purchase().refunded_minor == 400
    assert driver.shop.wallet().balance_minor == 600
    assert driver.statuses() == ["applied"] * 4
    assert driver.shop.faults() == []


def test_a_refund_that_fails_after_it_was_in_a_total_gives_the_credit_back(
    driver: ProviderDriver,
) -> None:
    driver.report(driver.paid(), total(driver, 400))
    failed = named(driver, 400, "re_1", at=500, failed=True, created=60)

    driver.report(failed)

    assert driver.purchase().status == "settled"
    assert driver.signed() == [("payment", 1000), ("refund", -400), ("refund_reversal", 400)]


def test_a_refund_that_has_failed_is_in_no_later_total(driver: ProviderDriver) -> None:
    failed = named(driver, 400, "re_1", at=100, failed=True, created=60)

    driver.report(driver.paid(), total(driver, 400, 60), failed, total(driver, 300, 200))

    assert driver.purchase().refunded_minor == 300


def test_a_refund_that_the_shop_records_and_a_total_includes_counts_once(
    driver: ProviderDriver,
) -> None:
    driver.report(driver.paid())
    driver.record_refund("re_1", 400)

    driver.report(total(driver, 400))

    assert driver.purchase().refunded_minor == 400


def test_more_refunds_than_were_paid_are_stored_and_call_back_the_whole_payment(
    driver: ProviderDriver,
) -> None:
    driver.report(driver.paid(), named(driver, 600, "re_1"), named(driver, 600, "re_2", at=70))

    driver.record_refund(f"re_1_{driver.payment_id}", 600)

    assert driver.purchase().refunded_minor == 1000
    with pytest.raises(RefundExceedsPaymentError, match="0 of the 1000"):
        driver.record_refund("re_3", 1)


def test_the_shop_may_record_a_refund_that_a_total_already_includes(driver: ProviderDriver) -> None:
    driver.report(driver.paid(), total(driver, 1000))

    driver.record_refund("re_1", 1000)

    assert driver.purchase().refunded_minor == 1000


def test_a_parked_payment_is_closed_once_all_of_it_is_refunded(driver: ProviderDriver) -> None:
    driver.report(driver.paid(800))

    driver.report(total(driver, 800))

    assert driver.statuses() == ["applied", "applied"]


RefundEnd = Literal["succeeded", "pending", "failed"]


@dataclass(frozen=True)
class Refund:
    """The times of one refund at the provider, in seconds after the payment."""

    amount: int
    asked_at: int
    end: RefundEnd
    ended_at: int


@st.composite
def histories(draw: st.DrawFn) -> list[Refund]:
    """Refunds begin at even seconds, several perhaps in one; they fail at odd seconds."""
    refunds: list[Refund] = []
    at = 60
    for _ in range(draw(st.integers(1, 4))):
        at += 2 * draw(st.integers(0, 2))
        end: RefundEnd = draw(st.sampled_from(["succeeded", "pending", "failed"]))
        ended_at = at + 1 + 2 * draw(st.integers(0, 3))
        refunds.append(Refund(draw(st.integers(1, 250)), at, end, ended_at))
    return refunds


def events_of(
    driver: ProviderDriver, refunds: Sequence[Refund], subscribed: Subscribed
) -> list[Json]:
    """The events that the provider sends; `subscribed`: the types that the shop receives."""
    sums, names, failures = [], [], []
    for number, refund in enumerate(refunds):
        so_far = [
            earlier.amount
            for earlier in refunds[: number + 1]
            if earlier.end != "failed" or earlier.ended_at > refund.asked_at
        ]
        sums.append(total(driver, sum(so_far), refund.asked_at))
        about: dict[str, Any] = {"created": refund.asked_at}
        once = (driver, refund.amount, f"re_{number}")
        names.append(named(*once, refund.asked_at, status="pending", **about))
        if refund.end != "pending":
            last = named(*once, refund.ended_at, status=refund.end, type_="refund.updated", **about)
            names.append(last)
            failures += [last] if refund.end == "failed" else []
    return {"all": sums + names, "totals": sums + failures, "names": names}[subscribed]


@settings(
    max_examples=of_tier(20, 60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(refunds=histories(), subscribed=st.sampled_from(["all", "totals", "names"]), data=st.data())
def test_refunds_take_the_same_credit_in_any_order_of_events(
    shop: Shop, refunds: list[Refund], subscribed: Subscribed, data: st.DataObject
) -> None:
    driver = ProviderDriver.open(Shop.open(shop.sessions, shop.buffer), Stripe())
    sent = [driver.paid(), *events_of(driver, refunds, subscribed)]
    drawn = data.draw(st.lists(st.sampled_from(sent), max_size=3))
    again = [{**event, "id": f"{event['id']}_{n}"} for n, event in enumerate(drawn)]

    driver.report(*data.draw(st.permutations([*sent, *again])))

    open_too = subscribed != "names"
    ends = {"succeeded", "pending"} if open_too else {"succeeded"}
    gone = sum(refund.amount for refund in refunds if refund.end in ends)
    assert driver.purchase().refunded_minor == gone
    assert driver.shop.wallet().balance_minor == 1000 - gone
    assert set(driver.statuses()) == {"applied"}
    assert driver.shop.faults() == []


# --- accepted by a person -------------------------------------------------------------------------


@BOTH
def test_a_smaller_payment_that_a_person_accepts_pays_for_the_purchase(
    shop: Shop, vendor: Vendor
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    assert driver.report(driver.paid(800)) == ["parked"]

    driver.record_payment(driver.payment_id)

    bought = driver.purchase()
    assert (bought.status, bought.provider, bought.payment_id, bought.paid_minor) == (
        "settled", vendor.name, driver.payment_id, 800,
    )  # fmt: skip
    assert (driver.statuses(), driver.signed()) == (["applied"], [("payment", 1000)])
    assert [payment.parked_reason for payment in driver.details().payments] == [None]


@BOTH
def test_refunds_and_disputes_of_an_accepted_payment_count(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)
    driver.report(driver.paid(800))
    driver.record_payment(driver.payment_id)

    statuses = driver.report(
        driver.refunded(400), driver.disputed("opened", amount=400), driver.paid(800)
    )

    assert statuses == ["applied"] * 3
    assert driver.signed() == [("payment", 1000), ("refund", -500)]
    assert (driver.purchase().status, shop.wallet().frozen_minor) == ("disputed", 500)
    assert shop.faults() == []


@BOTH
def test_a_payment_is_accepted_once(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)
    driver.report(driver.paid(800))

    for _ in range(2):
        driver.record_payment(driver.payment_id)

    assert driver.signed() == [("payment", 1000)]


@BOTH
def test_a_payment_that_names_no_purchase_is_accepted_for_one(shop: Shop, vendor: Vendor) -> None:
    driver = ProviderDriver.open(shop, vendor)
    driver.report(driver.paid(metadata={}), driver.refunded(400))

    driver.record_payment(driver.payment_id)

    assert driver.signed() == [("payment", 1000), ("refund", -400)]
    assert driver.statuses() == ["applied", "applied"]


@BOTH
@pytest.mark.parametrize("more", [{}, {"metadata": {}}], ids=str)
def test_a_payment_that_the_shop_recorded_before_the_provider_reported_it_counts_once(
    shop: Shop, vendor: Vendor, more: dict[str, object]
) -> None:
    driver = ProviderDriver.open(shop, vendor)
    driver.record_payment(driver.payment_id)
    driver.record_refund("re_hand", 100)

    statuses = driver.report(driver.paid(800, **more), driver.refunded(400))

    bought = driver.purchase()
    assert statuses == ["applied"] * 2
    assert (bought.provider, bought.paid_minor, bought.refunded_minor) == (vendor.name, 800, 625)
    assert [payment.parked_reason for payment in driver.details().payments] == [None, None]
    assert shop.faults() == []


def test_a_report_without_a_payment_id_is_refused_while_a_payment_is_parked(
    driver: ProviderDriver,
) -> None:
    driver.report(driver.paid(800))

    with pytest.raises(InvalidInputError) as refused:
        driver.record_payment()

    assert driver.payment_id in refused.value.problems[0].reason
    assert (driver.purchase().status, driver.signed()) == ("pending", [])


@pytest.mark.parametrize(
    ("paid", "amount", "reason"),
    [
        ({"amount": 800, "currency": "INR"}, None, "is in INR, not USD"),
        ({"status": "failed"}, None, "has not succeeded: failed"),
        ({"amount": 800}, 1000, "is 800 as stripe reports it"),
    ],
)
def test_a_payment_that_cannot_pay_for_a_purchase_is_refused_with_the_reason(
    driver: ProviderDriver, paid: dict[str, Any], amount: int | None, reason: str
) -> None:
    driver.report(driver.paid(**paid))

    with pytest.raises(InvalidInputError) as refused:
        driver.record_payment(driver.payment_id, amount)

    assert refused.value.problems[0].reason == reason
    assert driver.signed() == []


def test_a_payment_of_another_purchase_is_refused(shop: Shop, driver: ProviderDriver) -> None:
    other = ProviderDriver.open(shop, Stripe())
    other.report(other.paid(800))
    other.record_payment(other.payment_id)

    with pytest.raises(InvalidInputError, match="payment_id"):
        driver.record_payment(other.payment_id)


def test_a_second_payment_of_a_settled_purchase_is_refused(driver: ProviderDriver) -> None:
    driver.report(driver.paid())
    second = f"{driver.payment_id}_2"
    driver.report(driver.vendor.payment(payment_id=second, metadata=driver.mine))

    with pytest.raises(InvalidInputError, match="payment_id"):
        driver.record_payment(second)

    assert driver.signed() == [("payment", 1000)]


# --- a discount of the price ----------------------------------------------------------------------


def for_nothing(driver: ProviderDriver) -> Json:
    event = Stripe().session(payment_status="no_payment_required", metadata=driver.mine)
    event["data"]["object"].update(
        id=f"cs_{driver.payment_id}", payment_intent=None, amount_subtotal=1000, amount_total=0
    )
    return event


def test_a_checkout_page_without_a_payment_is_parked_until_a_person_accepts_it(
    driver: ProviderDriver,
) -> None:
    assert driver.report(for_nothing(driver)) == ["parked"]
    assert [event.reason for event in driver.events()] == ["underpaid"]

    driver.record_payment(f"cs_{driver.payment_id}")

    assert (driver.purchase().status, driver.purchase().paid_minor) == ("settled", 0)
    assert (driver.statuses(), driver.signed()) == (["applied"], [("payment", 1000)])
    assert driver.shop.faults() == []


def test_an_unpaid_checkout_page_fails_its_purchase_until_it_is_paid(
    driver: ProviderDriver,
) -> None:
    event = for_nothing(driver)
    event["type"] = "checkout.session.expired"
    event["data"]["object"].update(payment_status="unpaid", amount_total=1000)

    assert driver.report(event) == ["applied"]
    assert (driver.purchase().status, driver.purchase().failure) == ("failed", "expired")

    driver.report(driver.paid())
    assert driver.purchase().status == "settled"


# --- disputes -------------------------------------------------------------------------------------


def of_dodo(driver: ProviderDriver, type_: str, amount: object, at: int = 120) -> Json:
    event = driver.disputed(type_, dispute_id=f"dp_{driver.payment_id}", at=at)
    event["data"]["amount"] = amount
    return event


def test_a_dispute_whose_amount_is_a_number_freezes_and_takes_credit(shop: Shop) -> None:
    driver = ProviderDriver.open(shop, Dodo())

    assert driver.report(driver.paid(), of_dodo(driver, "opened", 400)) == ["applied"] * 2
    assert (driver.purchase().status, shop.wallet().frozen_minor) == ("disputed", 1000)

    driver.report(of_dodo(driver, "lost", 400, at=200))
    assert driver.signed() == [("payment", 1000), ("dispute", -400)]


@pytest.mark.parametrize("amount", ["4.00", 4.5, None, "much", [4]], ids=repr)
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_a_dispute_lost_for_an_unclear_amount_stays_frozen_until_a_person_enters_the_amount(
    shop: Shop, amount: object, order: Sequence[int]
) -> None:
    driver = ProviderDriver.open(shop, Dodo())
    events = [
        driver.paid(),
        of_dodo(driver, "opened", amount),
        of_dodo(driver, "lost", amount, at=200),
    ]
    driver.report(*[events[number] for number in order])
    driver.sweep()

    (parked,) = driver.events("parked")
    assert (parked.type, parked.reason) == ("dispute.lost", "unclear_amount")
    assert (driver.purchase().status, shop.wallet().frozen_minor) == ("disputed", 1000)

    driver.record_dispute(f"dp_{driver.payment_id}", "lost", 400)
    driver.sweep()
    assert driver.statuses() == ["applied"] * 3
    assert driver.signed() == [("payment", 1000), ("dispute", -400)]
    assert shop.faults() == []
