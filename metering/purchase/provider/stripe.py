"""Stripe: its webhooks verified by its own SDK, and the facts that they hold.

A payment is its PaymentIntent (`pi_…`), which refunds and disputes name too. A refund is known by
its own id (`re_…`), whichever event tells of it, so it counts once. Only the status of a dispute
says who lost it: that money was withdrawn is how every dispute begins.
"""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import Field

from metering.errors import BadSignatureError, UnreadableEventError
from metering.purchase.facts import PaymentFact, PaymentStatus, ReversalFact, ReversalStatus
from metering.purchase.provider.word import (
    TOLERANCE_S,
    CurrencyText,
    Form,
    Head,
    Id,
    Minor,
    SomeMinor,
    Word,
    event_id_of,
    failure_text,
    read,
    references,
)

_PAYMENTS: Final[Mapping[str, PaymentStatus]] = {
    "payment_intent.succeeded": "succeeded",
    "payment_intent.payment_failed": "failed",
    "payment_intent.processing": "pending",
    "payment_intent.canceled": "failed",
}
# A session may carry metadata that its payment does not.
_SESSIONS: Final = frozenset(
    {
        "checkout.session.completed",
        "checkout.session.async_payment_succeeded",
        "checkout.session.async_payment_failed",
    }
)
_REFUNDS: Final = frozenset(
    {"refund.created", "refund.updated", "refund.failed", "charge.refund.updated"}
)
_DISPUTES: Final = "charge.dispute."

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
_END_OF_YEAR_9999_S: Final = 253_402_300_799
Seconds = Annotated[int, Field(strict=True, ge=0, le=_END_OF_YEAR_9999_S)]


class _Error(Form):
    code: str | None = None
    decline_code: str | None = None
    message: str | None = None


class _Intent(Form):
    id: Id
    amount: Minor
    amount_received: Minor
    currency: CurrencyText
    metadata: dict[str, object] | None = None
    last_payment_error: _Error | None = None
    cancellation_reason: str | None = None


class _Session(Form):
    payment_intent: Id | None = None
    payment_status: str
    amount_total: Minor | None = None
    currency: CurrencyText | None = None
    metadata: dict[str, object] | None = None


class _Refund(Form):
    id: Id
    amount: SomeMinor
    payment_intent: Id | None = None
    charge: Id | None = None
    currency: CurrencyText | None = None
    status: str | None = None


class _Refunds(Form):
    data: tuple[_Refund, ...] = ()


class _Charge(Form):
    refunds: _Refunds | None = None


class _Dispute(Form):
    id: Id
    amount: SomeMinor
    payment_intent: Id | None = None
    charge: Id | None = None
    currency: CurrencyText | None = None
    status: Id


class _IntentData(Form):
    object: _Intent


class _SessionData(Form):
    object: _Session


class _RefundData(Form):
    object: _Refund


class _ChargeData(Form):
    object: _Charge


class _DisputeData(Form):
    object: _Dispute


class _IntentEvent(Form):
    created: Seconds
    data: _IntentData


class _SessionEvent(Form):
    created: Seconds
    data: _SessionData


class _RefundEvent(Form):
    created: Seconds
    data: _RefundData


class _ChargeEvent(Form):
    created: Seconds
    data: _ChargeData


class _DisputeEvent(Form):
    created: Seconds
    data: _DisputeData


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
        return Word(type_, (_payment(read(_IntentEvent, body, type_), status),))
    if type_ in _SESSIONS:
        return Word(type_, _session(read(_SessionEvent, body, type_), type_))
    if type_ in _REFUNDS:
        refund = read(_RefundEvent, body, type_)
        return Word(type_, _refunds(refund.created, (refund.data.object,), type_))
    if type_ == "charge.refunded":
        # Older versions of the API list the refunds of a charge here; newer ones tell of each.
        charge = read(_ChargeEvent, body, type_)
        listed = charge.data.object.refunds or _Refunds()
        return Word(type_, _refunds(charge.created, listed.data, type_))
    if type_.startswith(_DISPUTES):
        return Word(type_, (_dispute(read(_DisputeEvent, body, type_), type_),))
    return Word(type_, ())


def _payment(event: _IntentEvent, status: PaymentStatus) -> PaymentFact:
    intent = event.data.object
    error = intent.last_payment_error or _Error()
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


def _session(event: _SessionEvent, type_: str) -> tuple[PaymentFact, ...]:
    """Return the payment of a session; one without a price, or of a subscription, has none."""
    session = event.data.object
    if session.payment_intent is None or session.amount_total is None or session.currency is None:
        return ()
    for_ = references(session.metadata)
    status: PaymentStatus = "succeeded" if session.payment_status == "paid" else "pending"
    if type_ == "checkout.session.async_payment_failed":
        status = "failed"
    fact = PaymentFact(
        provider="stripe",
        payment_id=session.payment_intent,
        status=status,
        amount_minor=session.amount_total,
        currency=session.currency.upper(),
        occurred_at=_moment(event.created),
        purchase_id=for_.purchase_id,
        charge_id=for_.charge_id,
        failure="payment failed" if status == "failed" else None,
    )
    return (fact,)


def _refunds(created_s: int, refunds: tuple[_Refund, ...], type_: str) -> tuple[ReversalFact, ...]:
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
        )
        for refund in refunds
    )


def _dispute(event: _DisputeEvent, type_: str) -> ReversalFact:
    dispute = event.data.object
    return ReversalFact(
        provider="stripe",
        kind="dispute",
        reversal_id=dispute.id,
        payment_id=_paid_by(dispute, type_),
        status=_DISPUTE_ENDS.get(dispute.status, "open"),
        occurred_at=_moment(event.created),
        amount_minor=dispute.amount,
        currency=dispute.currency and dispute.currency.upper(),
    )


def _paid_by(reversal: _Refund | _Dispute, type_: str) -> str:
    """Return the payment that is called back: a charge alone, where there is no PaymentIntent."""
    payment_id = reversal.payment_intent or reversal.charge
    if payment_id is None:
        raise UnreadableEventError("data.object.payment_intent: is missing", type_)
    return payment_id


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
