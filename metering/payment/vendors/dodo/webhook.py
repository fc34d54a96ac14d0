"""Dodo's webhooks: verified by its own SDK, and turned into facts.

The SDK takes half a second and 30 MB to import, and only a process that verifies needs it.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from pydantic import AwareDatetime
from standardwebhooks.webhooks import WebhookVerificationError

from metering.errors import BadSignatureError, UnreadableEventError
from metering.fields import CurrencyText, Filled255, Minor, PositiveMinor
from metering.payment.facts import PaymentFact, ReversalFact
from metering.payment.vendors.parsing import (
    NOT_A_PAYMENT,
    NOTHING_PAID,
    TOLD_BY_THE_PAYMENT,
    UNKNOWN_TYPE,
    Form,
    Head,
    ParsedEvent,
    dispute_event,
    event_id_of,
    failure_text,
    payment_fact,
    read,
)
from metering.purchase.reversal_target import PaymentStatus, ReversalStatus

if TYPE_CHECKING:
    from dodopayments import DodoPayments

_PAYMENTS: Final[Mapping[str, PaymentStatus]] = {
    "payment.succeeded": "succeeded",
    "payment.failed": "failed",
    "payment.processing": "pending",
    "payment.cancelled": "failed",
}
_REFUNDS: Final[Mapping[str, ReversalStatus]] = {
    "refund.succeeded": "succeeded",
    "refund.failed": "failed",
}
# A seller who accepts a dispute, or lets its time run out, has lost the money.
_DISPUTES: Final[Mapping[str, ReversalStatus]] = {
    "dispute.opened": "open",
    "dispute.challenged": "open",
    "dispute.won": "won",
    "dispute.cancelled": "won",
    "dispute.lost": "lost",
    "dispute.accepted": "lost",
    "dispute.expired": "lost",
}
# Why other events about a customer's money are ignored.
_IGNORED: Final[Mapping[str, str]] = {
    "abandoned_checkout.detected": NOTHING_PAID,
    "abandoned_checkout.recovered": TOLD_BY_THE_PAYMENT,
    "dunning.started": NOTHING_PAID,
    "dunning.recovered": TOLD_BY_THE_PAYMENT,
    "subscription.renewed": TOLD_BY_THE_PAYMENT,
}
# Any other event of these families is about money, and is parked.
_MONEY: Final = ("payment.", "refund.", "dispute.")


class _Payment(Form):
    payment_id: Filled255
    total_amount: Minor
    currency: CurrencyText
    metadata: dict[str, object] | None = None
    error_code: str | None = None
    error_message: str | None = None


class _Refund(Form):
    refund_id: Filled255
    payment_id: Filled255
    is_partial: bool = False
    amount: PositiveMinor | None = None
    currency: CurrencyText | None = None


class _Dispute(Form):
    dispute_id: Filled255
    payment_id: Filled255
    # The vendor declares a text, also sends a number, and names no unit.
    amount: object = None
    currency: object = None


Subject = TypeVar("Subject", _Payment, _Refund, _Dispute)


class _Event(Form, Generic[Subject]):
    timestamp: AwareDatetime
    data: Subject


def verify(body: bytes, headers: Mapping[str, str], secret: str) -> str:
    """Return the id of a webhook that was signed with `secret` within the tolerance.

    Raises: BadSignatureError if it was not, or if its time is more than five minutes off.
    """
    try:
        _client().webhooks.unwrap(body.decode(), headers=headers, key=secret)
    except (json.JSONDecodeError, RecursionError):
        pass  # the signature was checked before, and every signed webhook is kept
    except (WebhookVerificationError, ValueError):
        raise BadSignatureError from None
    return event_id_of(headers.get("webhook-id"), body)


@cache
def _client() -> "DodoPayments":
    """Return a client that verifies and never calls. Its values keep the environment out."""
    from dodopayments import DodoPayments  # noqa: PLC0415

    return DodoPayments(bearer_token="none", base_url="http://127.0.0.1")  # noqa: S106


def parse(body: bytes) -> ParsedEvent:
    """Return the facts of an event.

    Raises: UnreadableEventError if it does not have the form of its type.
    """
    type_ = read(Head, body).type
    if (paid := _PAYMENTS.get(type_)) is not None:
        return ParsedEvent(type_, (_payment(body, type_, paid),))
    if (refunded := _REFUNDS.get(type_)) is not None:
        return ParsedEvent(type_, (_refund(body, type_, refunded),))
    if (disputed := _DISPUTES.get(type_)) is not None:
        return _dispute(body, type_, disputed)
    if type_.startswith(_MONEY):
        return ParsedEvent(type_, parked=UNKNOWN_TYPE)
    return ParsedEvent(type_, ignored=_IGNORED.get(type_, NOT_A_PAYMENT))


def _payment(body: bytes, type_: str, status: PaymentStatus) -> PaymentFact:
    event = read(_Event[_Payment], body, type_)
    payment = event.data
    cause = "cancelled" if type_ == "payment.cancelled" else "payment failed"
    return payment_fact(
        provider="dodo",
        payment_id=payment.payment_id,
        status=status,
        amount_minor=payment.total_amount,
        currency=payment.currency,
        occurred_at=event.timestamp,
        metadata=payment.metadata,
        failure=failure_text(payment.error_message, payment.error_code, cause),
    )


def _refund(body: bytes, type_: str, status: ReversalStatus) -> ReversalFact:
    event = read(_Event[_Refund], body, type_)
    refund = event.data
    if refund.amount is None and refund.is_partial:
        raise UnreadableEventError("data.amount: is missing of a partial refund", type_)
    return ReversalFact(
        provider="dodo",
        kind="refund",
        reversal_id=refund.refund_id,
        payment_id=refund.payment_id,
        status=status,
        occurred_at=event.timestamp,
        amount_minor=refund.amount,
        currency=refund.currency and refund.currency.upper(),
    )


def _dispute(body: bytes, type_: str, status: ReversalStatus) -> ParsedEvent:
    event = read(_Event[_Dispute], body, type_)
    dispute = event.data
    fact = ReversalFact(
        provider="dodo",
        kind="dispute",
        reversal_id=dispute.dispute_id,
        payment_id=dispute.payment_id,
        status=status,
        occurred_at=event.timestamp,
    )
    return dispute_event(type_, fact, dispute.amount, dispute.currency)
