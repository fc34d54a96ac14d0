"""Stripe: its webhooks verified by its own SDK, and the facts that they hold.

A payment is its PaymentIntent (`pi_…`), which refunds and disputes name too; a charge without one
is a payment by its own id. A refund is known by its own id (`re_…`), whichever event tells of it,
so it counts once. `charge.refunded` of newer versions of the API names none, only what was refunded
in all. Only the status of a dispute says who lost it: that money was withdrawn is how every dispute
begins.
"""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from metering.errors import BadSignatureError, UnreadableEventError
from metering.payment.facts import PaymentFact, ReversalFact
from metering.payment.vendors.parsing import (
    NOT_A_PAYMENT,
    NOTHING_CAPTURED,
    NOTHING_PAID,
    TOLD_BY_THE_PAYMENT,
    TOLERANCE_S,
    UNKNOWN_TYPE,
    Disputed,
    Head,
    References,
    Word,
    event_id_of,
    failure_text,
    read,
    references,
    word_of_dispute,
)
from metering.payment.vendors.stripe.forms import (
    ChargeEvent,
    Dispute,
    DisputeEvent,
    IntentEvent,
    Refund,
    RefundEvent,
    Refunds,
    Session,
    SessionEvent,
    StripeError,
)
from metering.purchase.reversal_target import PaymentStatus, ReversalStatus

_PAYMENTS: Final[Mapping[str, PaymentStatus]] = {
    "payment_intent.succeeded": "succeeded",
    "payment_intent.payment_failed": "failed",
    "payment_intent.processing": "pending",
    "payment_intent.canceled": "failed",
}
# Of a charge that has no PaymentIntent.
_CHARGES: Final[Mapping[str, PaymentStatus]] = {
    "charge.succeeded": "succeeded",
    "charge.captured": "succeeded",
    "charge.pending": "pending",
    "charge.failed": "failed",
    "charge.expired": "failed",
}
# A session may carry metadata that its payment does not.
_SESSIONS: Final = frozenset(
    {
        "checkout.session.completed",
        "checkout.session.async_payment_succeeded",
        "checkout.session.async_payment_failed",
        "checkout.session.expired",
    }
)
_REFUNDS: Final = frozenset(
    {"refund.created", "refund.updated", "refund.failed", "charge.refund.updated"}
)
_DISPUTES: Final = "charge.dispute."
# Why nothing follows from the rest of what is about the money of a customer.
_IGNORED: Final[Mapping[str, str]] = {
    "payment_intent.created": NOTHING_PAID,
    "payment_intent.requires_action": NOTHING_PAID,
    "payment_intent.amount_capturable_updated": NOTHING_PAID,
    "payment_intent.partially_funded": NOTHING_PAID,
    "charge.updated": TOLD_BY_THE_PAYMENT,
}
_IGNORED_FAMILIES: Final[Mapping[str, str]] = {
    "invoice": TOLD_BY_THE_PAYMENT,
    "invoice_payment": TOLD_BY_THE_PAYMENT,
    "credit_note": TOLD_BY_THE_PAYMENT,
    "customer_cash_balance_transaction": TOLD_BY_THE_PAYMENT,
    "source": TOLD_BY_THE_PAYMENT,
    "radar": NOTHING_PAID,
    "review": NOTHING_PAID,
}
# What else is said of these is about money, and a person looks at it.
_MONEY: Final = ("payment_intent.", "charge.", "checkout.session.", "refund.")

# What is not named here is still on its way.
_REFUND_ENDS: Final[Mapping[str, ReversalStatus]] = {
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "failed",
}
# A warning that was closed, or a dispute that was prevented, took no money by itself.
_DISPUTE_ENDS: Final[Mapping[str, ReversalStatus]] = {
    "won": "won",
    "lost": "lost",
    "warning_closed": "won",
    "prevented": "won",
}

_UNIX_TIME: Final = re.compile(r"[0-9]{1,12}", re.ASCII)


def verify(body: bytes, headers: Mapping[str, str], secret: str) -> str:
    """Return the id of an event that was signed with `secret` within the tolerance.

    Raises:
        BadSignatureError: it was not, or its time is more than five minutes off.

    """
    # Imported late: it takes longer than all the rest, and only who verifies needs it.
    import stripe  # noqa: PLC0415

    signature = headers.get("stripe-signature", "")
    # The SDK compares texts, and refuses to compare what is not ASCII with another exception.
    if not signature.isascii() or not _is_timed(signature):
        raise BadSignatureError
    try:
        event = stripe.Webhook.construct_event(body, signature, secret, tolerance=TOLERANCE_S)
    except (stripe.SignatureVerificationError, UnicodeDecodeError):
        raise BadSignatureError from None
    except (ValueError, AttributeError, RecursionError):
        # The signature has been found good by then, and what was signed is kept.
        return event_id_of(None, body)
    return event_id_of(getattr(event, "id", None), body)


def _is_timed(signature: str) -> bool:
    """Tell whether the time is there and not ahead of ours: the SDK refuses what is stale only."""
    parts = (item.partition("=") for item in signature.split(","))
    signed_at = next((value for name, _, value in parts if name == "t"), "")
    if not _UNIX_TIME.fullmatch(signed_at):
        return False
    return int(signed_at) <= time.time() + TOLERANCE_S


def facts_of(body: bytes) -> Word:
    """Return what an event says.

    Raises:
        UnreadableEventError: it is not in the form of its type.

    """
    type_ = read(Head, body).type
    if (status := _PAYMENTS.get(type_)) is not None:
        return Word(type_, (_payment(read(IntentEvent, body, type_), status),))
    if type_ in _SESSIONS:
        return _session(read(SessionEvent, body, type_), type_)
    if type_ in _REFUNDS:
        refund = read(RefundEvent, body, type_)
        return Word(type_, _refunds(refund.created, (refund.data.object,), type_))
    if type_.startswith("charge."):
        return _of_charge(body, type_)
    return _other(type_)


def _of_charge(body: bytes, type_: str) -> Word:
    if type_.startswith(_DISPUTES):
        return _dispute(read(DisputeEvent, body, type_), type_)
    if type_ == "charge.refunded":
        return _refunded(read(ChargeEvent, body, type_), type_)
    if (status := _CHARGES.get(type_)) is not None:
        return _charge(read(ChargeEvent, body, type_), type_, status)
    return _other(type_)


def _other(type_: str) -> Word:
    family = type_.partition(".")[0]
    ignored = _IGNORED.get(type_) or _IGNORED_FAMILIES.get(family)
    if ignored is None and type_.startswith(_MONEY):
        return Word(type_, parked=UNKNOWN_TYPE)
    return Word(type_, ignored=ignored or NOT_A_PAYMENT)


def _payment(event: IntentEvent, status: PaymentStatus) -> PaymentFact:
    intent = event.data.object
    error = intent.last_payment_error or StripeError()
    failure = failure_text(
        intent.cancellation_reason, error.decline_code, error.code, error.message, "payment failed"
    )
    for_ = references(intent.metadata)
    return PaymentFact(
        provider="stripe",
        payment_id=intent.id,
        status=status,
        amount_minor=intent.amount_received if status == "succeeded" else intent.amount,
        currency=intent.currency.upper(),
        occurred_at=_moment(event.created),
        purchase_id=for_.purchase_id,
        charge_id=for_.charge_id,
        failure=failure if status == "failed" else None,
    )


def _session(event: SessionEvent, type_: str) -> Word:
    """Return the payment of a session. One of a subscription, or that sets a card up, has none.

    A session that needs no payment, for a discount of all of it, or that has expired, is one by its
    own id: of nothing. Whom it does not concern is not told of it.
    """
    session, for_ = event.data.object, references(event.data.object.metadata)
    payment_id = session.payment_intent
    if payment_id is None and session.payment_status != "paid" and for_ != References(None, None):
        payment_id = session.id
    if payment_id is None or session.amount_total is None or session.currency is None:
        is_paid = session.payment_status == "paid"
        return Word(type_, ignored=TOLD_BY_THE_PAYMENT if is_paid else NOTHING_PAID)
    status = _status_of(session, type_)
    failure = "expired" if type_ == "checkout.session.expired" else "payment failed"
    fact = PaymentFact(
        provider="stripe",
        payment_id=payment_id,
        status=status,
        amount_minor=session.amount_total,
        currency=session.currency.upper(),
        occurred_at=_moment(event.created),
        purchase_id=for_.purchase_id,
        charge_id=for_.charge_id,
        failure=failure if status == "failed" else None,
    )
    return Word(type_, (fact,))


def _status_of(session: Session, type_: str) -> PaymentStatus:
    if type_ in {"checkout.session.async_payment_failed", "checkout.session.expired"}:
        return "failed"
    return "pending" if session.payment_status == "unpaid" else "succeeded"


def _charge(event: ChargeEvent, type_: str, status: PaymentStatus) -> Word:
    charge = event.data.object
    if charge.payment_intent is not None:
        return Word(type_, ignored=TOLD_BY_THE_PAYMENT)
    if status == "succeeded" and not charge.captured:
        status = "pending"
    cause = "expired" if type_ == "charge.expired" else "payment failed"
    failure = failure_text(charge.failure_code, charge.failure_message, cause)
    captured = charge.amount if charge.amount_captured is None else charge.amount_captured
    for_ = references(charge.metadata)
    fact = PaymentFact(
        provider="stripe",
        payment_id=charge.id,
        status=status,
        amount_minor=captured if status == "succeeded" else charge.amount,
        currency=charge.currency.upper(),
        occurred_at=_moment(event.created),
        purchase_id=for_.purchase_id,
        charge_id=for_.charge_id,
        failure=failure if status == "failed" else None,
    )
    return Word(type_, (fact,))


def _refunded(event: ChargeEvent, type_: str) -> Word:
    """Return the refunds of a charge: each, as older versions of the API list them, or the total.

    The total counts what was held and never captured too, so it says nothing of a charge that was
    captured in part: there refunds are told one by one, or a person says them.
    """
    charge = event.data.object
    listed = charge.refunds or Refunds()
    facts = _refunds(event.created, listed.data, type_)
    if facts and not listed.has_more:
        return Word(type_, facts)
    captured = charge.amount if charge.amount_captured is None else charge.amount_captured
    if not captured or not charge.amount_refunded:
        return Word(type_, facts, ignored=NOTHING_CAPTURED)
    if captured < charge.amount:
        reason = "data.object.amount_refunded: counts what was not captured too; say it by hand"
        raise UnreadableEventError(reason, type_)
    total = ReversalFact(
        provider="stripe",
        kind="refund_total",
        reversal_id=charge.id,
        payment_id=charge.payment_intent or charge.id,
        status="succeeded",
        occurred_at=_moment(event.created),
        amount_minor=charge.amount_refunded,
        currency=charge.currency.upper(),
    )
    return Word(type_, (*facts, total))


def _refunds(created_s: int, refunds: tuple[Refund, ...], type_: str) -> tuple[ReversalFact, ...]:
    return tuple(
        ReversalFact(
            provider="stripe",
            kind="refund",
            reversal_id=refund.id,
            payment_id=_paid_by(refund, type_),
            status=_REFUND_ENDS.get(refund.status or "", "pending"),
            occurred_at=_moment(created_s),
            amount_minor=refund.amount,
            currency=refund.currency and refund.currency.upper(),
            began_at=None if refund.created is None else _moment(refund.created),
        )
        for refund in refunds
    )


def _dispute(event: DisputeEvent, type_: str) -> Word:
    dispute = event.data.object
    return word_of_dispute(
        type_,
        Disputed(
            provider="stripe",
            dispute_id=dispute.id,
            payment_id=_paid_by(dispute, type_),
            status=_DISPUTE_ENDS.get(dispute.status, "open"),
            occurred_at=_moment(event.created),
            amount=dispute.amount,
            currency=dispute.currency,
        ),
    )


def _paid_by(reversal: Refund | Dispute, type_: str) -> str:
    """Return the payment that is called back: a charge alone, where there is no PaymentIntent."""
    payment_id = reversal.payment_intent or reversal.charge
    if payment_id is None:
        raise UnreadableEventError("data.object.payment_intent: is missing", type_)
    return payment_id


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
