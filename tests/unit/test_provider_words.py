"""Events of providers become facts: whole payloads in the forms of the vendors' own SDKs."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_origin

import pytest
from dodopayments.types.unwrap_webhook_event import UnwrapWebhookEvent
from pydantic import TypeAdapter
from stripe import Charge, Dispute, Event, PaymentIntent, Refund, StripeObject
from stripe.checkout import Session

from metering.errors import UnreadableEventError
from metering.ids import ChargeId, PurchaseId
from metering.money import INT64_MAX
from metering.payment.facts import UNCLEAR_AMOUNT, PaymentFact, ReversalFact
from metering.payment.vendors.dodo import webhook as dodo
from metering.payment.vendors.parsing import (
    NOT_A_PAYMENT,
    NOTHING_CAPTURED,
    ParsedEvent,
    minor_of,
)
from metering.payment.vendors.stripe import webhook as stripe
from support.providers import BEGAN, Dodo, Json, Payment, Stripe, Vendor

BOTH = pytest.mark.parametrize("vendor", [Dodo(), Stripe()], ids=lambda vendor: vendor.name)
MINE = {"gullak_purchase_id": "pur_1", "gullak_charge_id": "chg_1", "else": "theirs"}


def parse(vendor: Vendor, event: Json) -> ParsedEvent:
    body = json.dumps(event).encode()
    return dodo.parse(body) if vendor.name == "dodo" else stripe.parse(body)


def payment(vendor: Vendor, event: Json) -> PaymentFact:
    (fact,) = parse(vendor, event).facts
    assert isinstance(fact, PaymentFact)
    return fact


def reversal(vendor: Vendor, event: Json) -> ReversalFact:
    (fact,) = parse(vendor, event).facts
    assert isinstance(fact, ReversalFact)
    return fact


# --- the payloads are valid ----------------------------------------------------------------------


def dodo_events() -> Iterator[Json]:
    vendor = Dodo()
    statuses: Sequence[Payment] = get_args(Payment)
    yield from (vendor.payment(status) for status in statuses)
    yield from (vendor.refund(failed=failed) for failed in (False, True))
    yield from (vendor.refund(amount=None), vendor.refund(250, is_partial=True))
    yield from (vendor.dispute(status) for status in DODO_DISPUTES)
    yield vendor.unrelated()


DODO_DISPUTES = {
    "opened": "open",
    "challenged": "open",
    "won": "won",
    "cancelled": "won",
    "lost": "lost",
    "accepted": "lost",
    "expired": "lost",
}


@pytest.mark.parametrize("event", list(dodo_events()), ids=lambda event: event["type"])
def test_the_events_of_dodo_in_these_tests_are_valid_for_its_sdk(event: Json) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(UnwrapWebhookEvent)

    parsed = adapter.validate_json(json.dumps(event))

    assert parsed.type == event["type"]


def stripe_events() -> Iterator[tuple[type[StripeObject], Json]]:
    vendor = Stripe()
    statuses: Sequence[Payment] = get_args(Payment)
    yield from ((PaymentIntent, vendor.payment(status)) for status in statuses)
    yield from ((Session, vendor.session()), (Session, vendor.session(payment_id=None)))
    yield from ((Refund, vendor.refund(failed=failed)) for failed in (False, True))
    refund = vendor.refund_object(1000, "succeeded", "re_1", "pi_1", 60)
    yield from ((Charge, vendor.refunded_charge(refunds)) for refunds in (None, [refund]))
    yield from ((Dispute, vendor.dispute(status)) for status in ("opened", "won"))


def misfits(kind: type[StripeObject], values: Json) -> list[str]:
    """Return the fields that differ from the declaration of the SDK, which does not check them."""
    kinds = {
        name: declared
        for name, declared in kind.__annotations__.items()
        if get_origin(declared) is not ClassVar  # type: ignore[redundant-expr]
        and not name.startswith("_")
    }
    wrong = [f"{name} is unknown" for name in values.keys() - kinds.keys()]
    for name, declared in kinds.items():
        options = get_args(declared) if get_origin(declared) is not Literal else ()
        if name not in values:
            wrong += [] if NoneType in options else [f"{name} is missing"]
        elif values[name] is None:
            wrong += [] if NoneType in options else [f"{name} is null"]
        elif isinstance(declared, type) and declared in (int, str, bool):
            wrong += [] if type(values[name]) is declared else [f"{name} is no {declared}"]
        elif get_origin(declared) is Literal and values[name] not in get_args(declared):
            wrong += [f"{name} is not one of {get_args(declared)}"]
    return wrong


@pytest.mark.parametrize(
    ("kind", "event"), list(stripe_events()), ids=lambda value: str(value)[:40]
)
def test_the_events_of_stripe_in_these_tests_have_the_fields_of_its_sdk(
    kind: type[StripeObject], event: Json
) -> None:
    assert misfits(Event, event) + misfits(kind, event["data"]["object"]) == []


# --- payments -------------------------------------------------------------------------------------


@BOTH
def test_a_payment_has_its_amount_and_its_purchase(vendor: Vendor) -> None:
    event = vendor.payment("succeeded", 84_900, currency="INR", metadata=MINE, at=5)

    assert payment(vendor, event) == PaymentFact(
        provider=vendor.name,
        payment_id="pi_1",
        status="succeeded",
        amount_minor=84_900,
        currency="INR",
        occurred_at=BEGAN + timedelta(seconds=5),
        purchase_id=PurchaseId("pur_1"),
        charge_id=ChargeId("chg_1"),
    )


@BOTH
@pytest.mark.parametrize(
    ("status", "known"), [("failed", "failed"), ("processing", "pending"), ("cancelled", "failed")]
)
def test_a_payment_that_has_not_succeeded_has_its_status(
    vendor: Vendor, status: Payment, known: str
) -> None:
    fact = payment(vendor, vendor.payment(status, 700))

    assert (fact.status, fact.amount_minor) == (known, 700)


@pytest.mark.parametrize(
    ("vendor", "status", "reason"),
    [
        (Dodo(), "failed", "The card has insufficient funds."),
        (Dodo(), "cancelled", "cancelled"),
        (Stripe(), "failed", "insufficient_funds"),
        (Stripe(), "cancelled", "abandoned"),
    ],
)
def test_a_failed_payment_has_its_reason(vendor: Vendor, status: Payment, reason: str) -> None:
    assert payment(vendor, vendor.payment(status)).failure == reason


def test_the_received_amount_counts_not_the_requested_amount() -> None:
    event = Stripe().payment("succeeded", 1000)
    event["data"]["object"]["amount_received"] = 999

    assert payment(Stripe(), event).amount_minor == 999


@BOTH
@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"gullak_purchase_id": 5},
        {"gullak_purchase_id": "x" * 65},
        {"gullak_purchase_id": "a b"},
    ],
    ids=str,
)
def test_a_payment_without_our_reference_has_no_purchase(
    vendor: Vendor, metadata: dict[str, object]
) -> None:
    fact = payment(vendor, vendor.payment(metadata=metadata))

    assert (fact.purchase_id, fact.charge_id) == (None, None)


def test_a_text_is_stored_without_nul() -> None:
    event = Dodo().payment("failed")
    event["data"]["error_message"] = "no\0 funds" + "!" * 1000

    failure = payment(Dodo(), event).failure

    assert failure is not None
    assert failure.startswith("no funds!")
    assert len(failure) == 500


@pytest.mark.parametrize(
    ("type_", "payment_status", "known"),
    [
        ("checkout.session.completed", "paid", "succeeded"),
        ("checkout.session.completed", "unpaid", "pending"),
        ("checkout.session.async_payment_succeeded", "paid", "succeeded"),
        ("checkout.session.async_payment_failed", "unpaid", "failed"),
    ],
)
def test_a_checkout_session_reports_its_payment_with_the_metadata_of_the_session(
    type_: str, payment_status: str, known: str
) -> None:
    event = Stripe().session(type_, payment_status=payment_status, metadata=MINE)

    fact = payment(Stripe(), event)

    assert (fact.payment_id, fact.status, fact.amount_minor) == ("pi_1", known, 1000)
    assert (fact.currency, fact.purchase_id) == ("USD", "pur_1")


def test_a_checkout_session_without_a_payment_is_ignored() -> None:
    assert parse(Stripe(), Stripe().session(payment_id=None)).facts == ()


@pytest.mark.parametrize(
    ("type_", "payment_status", "amount", "known"),
    [
        ("checkout.session.completed", "no_payment_required", 0, "succeeded"),
        ("checkout.session.expired", "unpaid", 1000, "failed"),
    ],
)
def test_a_session_without_a_payment_is_a_payment_with_the_id_of_the_session(
    type_: str, payment_status: str, amount: int, known: str
) -> None:
    event = Stripe().session(type_, payment_status=payment_status, metadata=MINE)
    event["data"]["object"].update(payment_intent=None, amount_total=amount)

    fact = payment(Stripe(), event)
    event["data"]["object"]["metadata"] = {}

    assert (fact.payment_id, fact.status, fact.amount_minor) == ("cs_test_1", known, amount)
    assert parse(Stripe(), event) == ParsedEvent(type_, ignored="nothing_paid")


# --- refunds --------------------------------------------------------------------------------------


@BOTH
def test_a_refund_has_its_amount_and_its_payment(vendor: Vendor) -> None:
    assert reversal(vendor, vendor.refund(250, refund_id="re_7", at=9)) == ReversalFact(
        provider=vendor.name,
        kind="refund",
        reversal_id="re_7",
        payment_id="pi_1",
        status="succeeded",
        occurred_at=BEGAN + timedelta(seconds=9),
        amount_minor=250,
        currency="USD",
        began_at=BEGAN + timedelta(seconds=9) if vendor.name == "stripe" else None,
    )


@BOTH
def test_a_refund_can_fail(vendor: Vendor) -> None:
    assert reversal(vendor, vendor.refund(failed=True)).status == "failed"


def test_a_refund_of_dodo_without_an_amount_is_a_full_refund() -> None:
    assert reversal(Dodo(), Dodo().refund(None)).amount_minor is None


def test_a_partial_refund_without_an_amount_is_unreadable() -> None:
    with pytest.raises(UnreadableEventError, match=r"data\.amount"):
        parse(Dodo(), Dodo().refund(None, is_partial=True))


@pytest.mark.parametrize(
    ("status", "known"),
    [
        ("pending", "pending"),
        ("requires_action", "pending"),
        ("succeeded", "succeeded"),
        ("failed", "failed"),
        ("canceled", "failed"),
    ],
)
@pytest.mark.parametrize("type_", ["refund.created", "refund.updated", "charge.refund.updated"])
def test_a_refund_of_stripe_follows_its_status(type_: str, status: str, known: str) -> None:
    event = Stripe().refund(250, type_=type_, status=status)

    assert reversal(Stripe(), event).status == known


def test_a_refunded_charge_reports_each_listed_refund_by_its_own_id() -> None:
    listed = [Stripe().refund_object(400, "succeeded", f"re_{n}", "pi_1", 60) for n in (1, 2)]

    facts = parse(Stripe(), Stripe().refunded_charge(listed)).facts

    ids = [(fact.payment_id, getattr(fact, "reversal_id", None)) for fact in facts]
    assert ids == [("pi_1", "re_1"), ("pi_1", "re_2")]


def test_a_refunded_charge_without_a_list_reports_the_total() -> None:
    assert reversal(Stripe(), Stripe().refunded_charge(None, at=9)) == ReversalFact(
        provider="stripe",
        kind="refund_total",
        reversal_id="ch_pi_1",
        payment_id="pi_1",
        status="succeeded",
        occurred_at=BEGAN + timedelta(seconds=9),
        amount_minor=1000,
        currency="USD",
    )


def test_a_refunded_charge_with_an_incomplete_list_reports_refunds_and_total() -> None:
    event = Stripe().refunded_charge([Stripe().refund_object(4, "succeeded", "re_1", "pi_1", 60)])
    event["data"]["object"]["refunds"]["has_more"] = True

    facts = parse(Stripe(), event).facts

    assert [fact.kind for fact in facts if isinstance(fact, ReversalFact)] == [
        "refund", "refund_total",
    ]  # fmt: skip


def test_the_release_of_an_uncaptured_payment_is_no_refund() -> None:
    event = Stripe().refunded_charge(None)
    event["data"]["object"].update(amount_captured=0, captured=False)

    assert parse(Stripe(), event) == ParsedEvent("charge.refunded", ignored=NOTHING_CAPTURED)


def test_a_total_with_uncaptured_money_waits_for_a_person() -> None:
    event = Stripe().refunded_charge(None)
    event["data"]["object"]["amount_captured"] = 600

    with pytest.raises(UnreadableEventError, match="amount_refunded"):
        parse(Stripe(), event)


def test_a_charge_without_a_payment_intent_is_a_payment_by_its_own_id() -> None:
    event = Stripe().refund()
    event["data"]["object"]["payment_intent"] = None

    assert reversal(Stripe(), event).payment_id == "ch_pi_1"


# --- disputes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "known"), list(DODO_DISPUTES.items()))
def test_a_dispute_of_dodo_follows_its_type(status: str, known: str) -> None:
    fact = reversal(Dodo(), Dodo().dispute(status, 700, dispute_id="dp_7"))

    assert (fact.kind, fact.reversal_id, fact.status) == ("dispute", "dp_7", known)
    assert (fact.payment_id, fact.amount_minor) == ("pi_1", 700)


@pytest.mark.parametrize(
    ("type_", "status", "known"),
    [
        ("created", "warning_needs_response", "open"),
        ("created", "needs_response", "open"),
        ("funds_withdrawn", "needs_response", "open"),
        ("updated", "under_review", "open"),
        ("updated", "warning_under_review", "open"),
        ("updated", "appeal_under_review", "open"),
        ("closed", "won", "won"),
        ("funds_reinstated", "won", "won"),
        ("closed", "warning_closed", "won"),
        ("closed", "prevented", "won"),
        ("closed", "lost", "lost"),
        ("updated", "something_new", "open"),
    ],
)
def test_a_dispute_of_stripe_follows_its_status(type_: str, status: str, known: str) -> None:
    event = Stripe().dispute_event(f"charge.dispute.{type_}", status, 700)

    fact = reversal(Stripe(), event)

    assert (fact.status, fact.payment_id, fact.amount_minor) == (known, "pi_1", 700)


def test_a_dispute_without_a_payment_is_unreadable() -> None:
    event = Stripe().dispute("opened")
    del event["data"]["object"]["payment_intent"]
    del event["data"]["object"]["charge"]

    with pytest.raises(UnreadableEventError, match="payment_intent"):
        parse(Stripe(), event)


@pytest.mark.parametrize(
    ("amount", "minor"),
    [
        ("1000", 1000),
        (1000, 1000),
        (400, 400),
        ("1", 1),
        ("9" * 30, INT64_MAX),
        (10**30, INT64_MAX),
    ],
)
def test_a_whole_number_is_minor_units_also_as_text(amount: object, minor: int) -> None:
    assert minor_of(amount) == minor


UNCLEAR = [
    "", "0", 0, "0.00", "10.00", "10.5", 10.5, 400.0, "-5", -5, "1,000.00", "1e3", ".5", "5.",
    "٣", "x" * 99, True, None, [400], {},
]  # fmt: skip


@pytest.mark.parametrize("amount", UNCLEAR, ids=repr)
def test_an_amount_with_a_decimal_point_or_a_bad_amount_is_unclear(amount: object) -> None:
    assert minor_of(amount) is None


def dispute(vendor: Vendor, status: Any, **changed: object) -> Json:
    event = vendor.dispute(status, dispute_id="dp_7")
    data = event["data"] if vendor.name == "dodo" else event["data"]["object"]
    data.update(changed)
    return event


@BOTH
@pytest.mark.parametrize("changed", [{"amount": each} for each in UNCLEAR], ids=repr)
def test_a_lost_dispute_of_an_unclear_amount_stays_open_and_waits_for_a_person(
    vendor: Vendor, changed: dict[str, object]
) -> None:
    event = dispute(vendor, "lost", **changed)

    word = parse(vendor, event)

    assert [fact.status for fact in word.facts] == ["open"]
    assert word.parked == UNCLEAR_AMOUNT


@BOTH
@pytest.mark.parametrize("changed", [{"amount": each} for each in UNCLEAR], ids=repr)
@pytest.mark.parametrize(("status", "known"), [("opened", "open"), ("won", "won")])
def test_a_dispute_that_takes_no_credit_counts_with_any_amount(
    vendor: Vendor, status: str, known: str, changed: dict[str, object]
) -> None:
    word = parse(vendor, dispute(vendor, status, **changed))

    assert [fact.status for fact in word.facts] == [known]
    assert word.parked is None


@BOTH
@pytest.mark.parametrize("currency", ["", "US", "4242 4242", 5, "US\0"], ids=repr)
def test_an_open_dispute_counts_in_any_currency(vendor: Vendor, currency: object) -> None:
    opened = parse(vendor, dispute(vendor, "opened", currency=currency))
    lost = parse(vendor, dispute(vendor, "lost", currency=currency))

    assert [fact.status for fact in opened.facts] == ["open"]
    assert (opened.parked, lost.parked) == (None, UNCLEAR_AMOUNT)


def test_a_dispute_of_dodo_whose_amount_is_a_number_is_in_minor_units() -> None:
    fact = reversal(Dodo(), dispute(Dodo(), "lost", amount=400))

    assert (fact.status, fact.amount_minor, fact.currency) == ("lost", 400, "USD")


# --- other events ---------------------------------------------------------------------------------


@BOTH
def test_an_event_that_is_not_about_a_payment_is_ignored(vendor: Vendor) -> None:
    event = vendor.unrelated()

    assert parse(vendor, event) == ParsedEvent(event["type"], ignored=NOT_A_PAYMENT)


@BOTH
@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"{}", b'{"type": 5}', b"[" * 100_000])
def test_a_body_that_is_not_an_event_is_unreadable(vendor: Vendor, body: bytes) -> None:
    read: Callable[[bytes], ParsedEvent] = dodo.parse if vendor.name == "dodo" else stripe.parse

    with pytest.raises(UnreadableEventError):
        read(body)


@pytest.mark.parametrize("amount", [10.5, 1000.0, "1000", True, None, -1, INT64_MAX + 1], ids=str)
@pytest.mark.parametrize(
    ("vendor", "field"), [(Dodo(), "total_amount"), (Stripe(), "amount_received")]
)
def test_an_amount_that_is_not_an_integer_is_unreadable(
    vendor: Vendor, field: str, amount: object
) -> None:
    event = vendor.payment()
    (event["data"] if vendor.name == "dodo" else event["data"]["object"])[field] = amount

    with pytest.raises(UnreadableEventError, match=field) as refused:
        parse(vendor, event)

    assert refused.value.event_type == event["type"]


@BOTH
def test_a_reason_does_not_quote_the_refused_value(vendor: Vendor) -> None:
    event = vendor.payment()
    data = event["data"] if vendor.name == "dodo" else event["data"]["object"]
    data["currency"] = "4242 4242 4242 4242"

    with pytest.raises(UnreadableEventError, match="currency") as refused:
        parse(vendor, event)

    assert "4242" not in refused.value.message


@BOTH
@pytest.mark.parametrize("text", ["", "nul\0", "x" * 256, "\ud800"], ids=ascii)
def test_an_id_that_cannot_be_stored_is_unreadable(vendor: Vendor, text: str) -> None:
    event = vendor.payment(payment_id=text)

    with pytest.raises(UnreadableEventError):
        parse(vendor, event)
