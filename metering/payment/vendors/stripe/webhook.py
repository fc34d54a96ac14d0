"""Stripe's webhooks: verified by its own SDK, and turned into facts.

A payment is a PaymentIntent (`pi_…`), which refunds and disputes name too; a charge without one is
a payment under its own id. A refund has its own id (`re_…`) in every event, so it counts once.
`charge.refunded` of newer API versions names no refund, only the total. Only the status of a
dispute shows who lost it: every dispute begins with a withdrawal of the money.
"""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from metering.errors import BadSignatureError, UnreadableEventError
from metering.payment.facts import ReversalFact
from metering.payment.vendors.parsing import (
    NOT_A_PAYMENT,
    NOTHING_CAPTURED,
    NOTHING_PAID,
    TOLD_BY_THE_PAYMENT,
    TOLERANCE_S,
    UNKNOWN_TYPE,
    Head,
    ParsedEvent,
    dispute_event,
    event_id_of,
    failure_text,
    payment_fact,
    read,
    references,
)
from metering.payment.vendors.stripe.forms import (
    Charge,
    Dispute,
    Event,
    Intent,
    Refund,
    Refunds,
    Session,
    StripeError,
)
from metering.purchase.reversal_target import PaymentStatus, ReversalStatus

FAILED: Final = "payment failed"

_PAYMENTS: Final[Mapping[str, PaymentStatus]] = {
    "payment_intent.succeeded": "succeeded",
    "payment_intent.payment_failed": "failed",
    "payment_intent.processing": "pending",
    "payment_intent.canceled": "failed",
}
# These count for a charge without a PaymentIntent.
_CHARGES: Final[Mapping[str, PaymentStatus]] = {
    "charge.succeeded": "succeeded",
    "charge.captured": "succeeded",
    "charge.pending": "pending",
    "charge.failed": "failed",
    "charge.expired": "failed",
}
# A session may carry metadata that its payment lacks.
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
# Why other events about a customer's money are ignored.
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
# Any other event of these families is about money, and is parked.
_MONEY: Final = ("payment_intent.", "charge.", "checkout.session.", "refund.")

# A refund with any other status is pending.
_REFUND_ENDS: Final[Mapping[str, ReversalStatus]] = {
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "failed",
}
# A closed warning and a prevented dispute took no money. Any other status is open.
_DISPUTE_ENDS: Final[Mapping[str, ReversalStatus]] = {
    "won": "won",
    "lost": "lost",
    "warning_closed": "won",
    "prevented": "won",
}

_UNIX_TIME: Final = re.compile(r"[0-9]{1,12}", re.ASCII)


def verify(body: bytes, headers: Mapping[str, str], secret: str) -> str:
    """Return the id of an event that was signed with `secret` within the tolerance.

    Raises: BadSignatureError if it was not, or if its time is more than five minutes off.
    """
    # Imported late: it takes longer than everything else here, and only this function needs it.
    import stripe  # noqa: PLC0415

    signature = headers.get("stripe-signature", "")
    # The SDK compares texts, and raises another exception if one of them is not ASCII.
    if not signature.isascii() or not _is_timed(signature):
        raise BadSignatureError
    try:
        event = stripe.Webhook.construct_event(body, signature, secret, tolerance=TOLERANCE_S)
    except (stripe.SignatureVerificationError, UnicodeDecodeError):
        raise BadSignatureError from None
    except (ValueError, AttributeError, RecursionError):
        # The SDK has checked the signature before it parses, and every signed event is kept.
        return event_id_of(None, body)
    return event_id_of(getattr(event, "id", None), body)


def _is_timed(signature: str) -> bool:
    """Tell whether the time is present and not ahead of ours: the SDK refuses only an old one."""
    parts = (item.partition("=") for item in signature.split(","))
    signed_at = next((value for name, _, value in parts if name == "t"), "")
    if not _UNIX_TIME.fullmatch(signed_at):
        return False
    return int(signed_at) <= time.time() + TOLERANCE_S


def parse(body: bytes) -> ParsedEvent:
    """Return the facts of an event.

    Raises: UnreadableEventError if it does not have the form of its type.
    """
    type_ = read(Head, body).type
    if (status := _PAYMENTS.get(type_)) is not None:
        return _intent(read(Event[Intent], body, type_), type_, status)
    if type_ in _SESSIONS:
        return _session(read(Event[Session], body, type_), type_)
    if type_ in _REFUNDS:
        event = read(Event[Refund], body, type_)
        return ParsedEvent(type_, _refunds(event.created, (event.data.object,), type_))
    if type_.startswith(_DISPUTES):
        return _dispute(read(Event[Dispute], body, type_), type_)
    return _charge_event(body, type_) or _other(type_)


def _charge_event(body: bytes, type_: str) -> ParsedEvent | None:
    if type_ == "charge.refunded":
        return _refunded_charge(read(Event[Charge], body, type_), type_)
    if (status := _CHARGES.get(type_)) is not None:
        return _charge(read(Event[Charge], body, type_), type_, status)
    return None


def _other(type_: str) -> ParsedEvent:
    family = type_.partition(".")[0]
    ignored = _IGNORED.get(type_) or _IGNORED_FAMILIES.get(family)
    if ignored is None and type_.startswith(_MONEY):
        return ParsedEvent(type_, parked=UNKNOWN_TYPE)
    return ParsedEvent(type_, ignored=ignored or NOT_A_PAYMENT)


def _intent(event: Event[Intent], type_: str, status: PaymentStatus) -> ParsedEvent:
    intent = event.data.object
    error = intent.last_payment_error or StripeError()
    fact = payment_fact(
        provider="stripe",
        payment_id=intent.id,
        status=status,
        amount_minor=intent.amount_received if status == "succeeded" else intent.amount,
        currency=intent.currency,
        occurred_at=_moment(event.created),
        metadata=intent.metadata,
        failure=failure_text(
            intent.cancellation_reason, error.decline_code, error.code, error.message, FAILED
        ),
    )
    return ParsedEvent(type_, (fact,))


def _session(event: Event[Session], type_: str) -> ParsedEvent:
    """Return the payment of a session. A session that sets up a card or subscription has none.

    A session of ours that took no payment, because a discount covered all or because it expired, is
    a payment of nothing under the session's own id.
    """
    session = event.data.object
    is_paid = session.payment_status == "paid"
    payment_id = session.payment_intent
    if payment_id is None and not is_paid and any(references(session.metadata)):
        payment_id = session.id
    if payment_id is None or session.amount_total is None or session.currency is None:
        return ParsedEvent(type_, ignored=TOLD_BY_THE_PAYMENT if is_paid else NOTHING_PAID)
    fact = payment_fact(
        provider="stripe",
        payment_id=payment_id,
        status=_status_of(session, type_),
        amount_minor=session.amount_total,
        currency=session.currency,
        occurred_at=_moment(event.created),
        metadata=session.metadata,
        failure="expired" if type_ == "checkout.session.expired" else FAILED,
    )
    return ParsedEvent(type_, (fact,))


def _status_of(session: Session, type_: str) -> PaymentStatus:
    if type_ in {"checkout.session.async_payment_failed", "checkout.session.expired"}:
        return "failed"
    return "pending" if session.payment_status == "unpaid" else "succeeded"


def _charge(event: Event[Charge], type_: str, status: PaymentStatus) -> ParsedEvent:
    charge = event.data.object
    if charge.payment_intent is not None:
        return ParsedEvent(type_, ignored=TOLD_BY_THE_PAYMENT)
    if status == "succeeded" and not charge.captured:
        status = "pending"
    cause = "expired" if type_ == "charge.expired" else FAILED
    fact = payment_fact(
        provider="stripe",
        payment_id=charge.id,
        status=status,
        amount_minor=charge.captured_minor if status == "succeeded" else charge.amount,
        currency=charge.currency,
        occurred_at=_moment(event.created),
        metadata=charge.metadata,
        failure=failure_text(charge.failure_code, charge.failure_message, cause),
    )
    return ParsedEvent(type_, (fact,))


def _refunded_charge(event: Event[Charge], type_: str) -> ParsedEvent:
    """Return the refunds of a charge: each one, as older versions of the API list them, or a total.

    The total also counts an amount that was authorised and never captured. So after a partial
    capture it proves nothing: those refunds come one by one, or a person enters them.
    """
    charge = event.data.object
    listed = charge.refunds or Refunds()
    facts = _refunds(event.created, listed.data, type_)
    if facts and not listed.has_more:
        return ParsedEvent(type_, facts)
    if not charge.captured_minor or not charge.amount_refunded:
        return ParsedEvent(type_, facts, ignored=NOTHING_CAPTURED)
    if charge.captured_minor < charge.amount:
        reason = "data.object.amount_refunded: has a part that was not captured; enter it by hand"
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
    return ParsedEvent(type_, (*facts, total))


def _refunds(created_s: int, refunds: tuple[Refund, ...], type_: str) -> tuple[ReversalFact, ...]:
    return tuple(
        ReversalFact(
            provider="stripe",
            kind="refund",
            reversal_id=refund.id,
            payment_id=_payment_of(refund, type_),
            status=_REFUND_ENDS.get(refund.status or "", "pending"),
            occurred_at=_moment(created_s),
            amount_minor=refund.amount,
            currency=refund.currency and refund.currency.upper(),
            began_at=None if refund.created is None else _moment(refund.created),
        )
        for refund in refunds
    )


def _dispute(event: Event[Dispute], type_: str) -> ParsedEvent:
    dispute = event.data.object
    fact = ReversalFact(
        provider="stripe",
        kind="dispute",
        reversal_id=dispute.id,
        payment_id=_payment_of(dispute, type_),
        status=_DISPUTE_ENDS.get(dispute.status, "open"),
        occurred_at=_moment(event.created),
    )
    return dispute_event(type_, fact, dispute.amount, dispute.currency)


def _payment_of(reversal: Refund | Dispute, type_: str) -> str:
    """Return the payment of a refund or dispute: the charge, if it has no PaymentIntent."""
    payment_id = reversal.payment_intent or reversal.charge
    if payment_id is None:
        raise UnreadableEventError("data.object.payment_intent: is missing", type_)
    return payment_id


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
