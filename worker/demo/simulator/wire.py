"""What the local gateway takes, answers, and tells: its webhooks have the form of Dodo's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

BUSINESS_ID: Final = "bus_local"
TEXT_MAX: Final = 2048

PaymentStatus = Literal["pending", "succeeded", "failed"]
ReversalKind = Literal["refund", "dispute"]
# How a dispute goes on, as Dodo calls it.
DisputeStep = Literal["challenged", "won", "lost", "accepted", "cancelled", "expired"]
Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=TEXT_MAX)]
Minor = Annotated[int, Field(strict=True, gt=0)]


class NewCustomer(BaseModel):
    """Who pays."""

    model_config = ConfigDict(extra="forbid")

    customer_id: Text
    email: Text
    name: Text


class NewPayment(BaseModel):
    """The body of `POST /payments`; the amount in minor units."""

    model_config = ConfigDict(extra="forbid")

    amount: Minor
    currency: Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Z]{3}$")]
    customer: NewCustomer
    payment_method: Text | None = None
    description: Text
    return_url: Annotated[Text, StringConstraints(pattern=r"^https?://[\x21-\x7e]+$")] | None = None
    metadata: dict[str, Text] = {}


class NewReversal(BaseModel):
    """The body of a refund or a dispute; without an amount it is of all of the payment."""

    model_config = ConfigDict(extra="forbid")

    amount: Minor | None = None


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment as stored; moments as RFC 3339 texts."""

    payment_id: str
    idempotency_key: str
    request: str
    status: PaymentStatus
    failure: str | None
    created_at: str

    @property
    def asked(self) -> NewPayment:
        """Return what was asked for."""
        return NewPayment.model_validate_json(self.request)


@dataclass(frozen=True, slots=True)
class Reversal:
    """A refund or a dispute as stored."""

    reversal_id: str
    payment_id: str
    kind: ReversalKind
    status: str
    amount_minor: int
    created_at: str


def shown(payment: Payment, page_url: str) -> dict[str, object]:
    """Return a payment as the API answers it; `page_url`: where a pending one can be paid."""
    asked = payment.asked
    on_page = asked.payment_method is None and payment.status == "pending"
    return {
        "payment_id": payment.payment_id,
        "idempotency_key": payment.idempotency_key,
        "status": payment.status,
        "failure": payment.failure,
        "url": page_url if on_page else None,
        "amount": asked.amount,
        "currency": asked.currency,
        "payment_method": asked.payment_method,
        "metadata": asked.metadata,
        "created_at": payment.created_at,
    }


def payment_event(payment: Payment, reversals: Sequence[Reversal], at: str) -> tuple[str, bytes]:
    """Return type and body of the webhook that tells how a payment ended."""
    return _event(f"payment.{payment.status}", "Payment", _payment(payment, reversals), at)


def refund_event(payment: Payment, refund: Reversal, at: str) -> tuple[str, bytes]:
    """Return type and body of the webhook that tells of a refund."""
    return _event(f"refund.{refund.status}", "Refund", _refund(payment, refund), at)


def dispute_event(payment: Payment, dispute: Reversal, at: str) -> tuple[str, bytes]:
    """Return type and body of the webhook that tells of a dispute."""
    data = {**_dispute(payment, dispute), **_told_of(payment), "reason": None}
    return _event(f"dispute.{dispute.status}", "Dispute", data, at)


def _event(type_: str, payload: str, data: dict[str, object], at: str) -> tuple[str, bytes]:
    body = {
        "business_id": BUSINESS_ID,
        "type": type_,
        "timestamp": at,
        "data": {"payload_type": payload, **data},
    }
    return type_, json.dumps(body, separators=(",", ":")).encode()


def _told_of(payment: Payment) -> dict[str, object]:
    """Return what an event repeats of the payment it is about."""
    return {"brand_id": BUSINESS_ID, "customer": payment.asked.customer.model_dump()}


def _payment(payment: Payment, reversals: Sequence[Reversal]) -> dict[str, object]:
    asked = payment.asked
    refunds = [_refund(payment, each) for each in reversals if each.kind == "refund"]
    disputes = [_dispute(payment, each) for each in reversals if each.kind == "dispute"]
    return {
        **_told_of(payment),
        "billing": {"country": "US"},
        "business_id": BUSINESS_ID,
        "created_at": payment.created_at,
        "currency": asked.currency,
        "digital_products_delivered": False,
        "disputes": disputes,
        "error_code": payment.failure,
        "error_message": payment.failure,
        "includes_usage": False,
        "is_multi_subscription": False,
        "is_update_payment_method": False,
        "metadata": asked.metadata,
        "payment_id": payment.payment_id,
        "payment_method": "card",
        "payment_provider": "dodo",
        "refunds": refunds,
        "retry_attempt": 0,
        "service_periods": [],
        "settlement_amount": asked.amount,
        "settlement_currency": asked.currency,
        "status": payment.status,
        "subscription_id": asked.payment_method,
        "subscription_ids": [asked.payment_method] if asked.payment_method else [],
        "tax": 0,
        "total_amount": asked.amount,
    }


def _refund(payment: Payment, refund: Reversal) -> dict[str, object]:
    return {
        **_told_of(payment),
        "amount": refund.amount_minor,
        "business_id": BUSINESS_ID,
        "created_at": refund.created_at,
        "currency": payment.asked.currency,
        "is_partial": refund.amount_minor < payment.asked.amount,
        "metadata": {},
        "payment_id": payment.payment_id,
        "reason": None,
        "refund_id": refund.reversal_id,
        "status": refund.status,
    }


def _dispute(payment: Payment, dispute: Reversal) -> dict[str, object]:
    return {
        # A text of minor units, as Dodo sends it.
        "amount": str(dispute.amount_minor),
        "business_id": BUSINESS_ID,
        "created_at": dispute.created_at,
        "currency": payment.asked.currency,
        "dispute_id": dispute.reversal_id,
        "dispute_stage": "dispute",
        "dispute_status": f"dispute_{dispute.status}",
        "payment_id": payment.payment_id,
        "remarks": None,
    }
