"""Events of payment providers in their wire formats, with their signatures.

Both vendors have the same methods, so that a test can use either. `at` is the time of the event at
the provider, in seconds after `BEGAN`.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Literal, Protocol

from standardwebhooks.webhooks import Webhook

Json = dict[str, Any]
Payment = Literal["succeeded", "failed", "processing", "cancelled"]
Dispute = Literal["opened", "challenged", "won", "lost"]

BEGAN = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
DODO_SECRET = "whsec_" + base64.b64encode(b"dodo's signing key, 32 bytes long").decode()
STRIPE_SECRET = "whsec_" + "stripe78" * 4
_numbers = count(1)


@dataclass(frozen=True)
class Delivery:
    """A webhook: the bytes of its body, and its headers."""

    body: bytes
    headers: Mapping[str, str]

    def with_body(self, body: bytes) -> "Delivery":
        return Delivery(body, self.headers)

    def with_headers(self, **changed: str | None) -> "Delivery":
        """The same with changed headers; None removes one."""
        names = {name.replace("_", "-"): value for name, value in changed.items()}
        headers = {**self.headers, **names}
        return Delivery(self.body, {name: v for name, v in headers.items() if v is not None})


class Vendor(Protocol):
    """The events that tests make, and their signature."""

    name: Literal["dodo", "stripe"]
    secret: str

    def payment(
        self,
        status: Payment = "succeeded",
        amount: int = 1000,
        *,
        currency: str = "USD",
        payment_id: str = "pi_1",
        metadata: Mapping[str, object] | None = None,
        at: int = 0,
    ) -> Json: ...

    def refund(
        self,
        amount: int = 1000,
        *,
        failed: bool = False,
        refund_id: str = "re_1",
        payment_id: str = "pi_1",
        at: int = 60,
        currency: str = "USD",
    ) -> Json: ...

    def dispute(
        self,
        status: Dispute,
        amount: int = 1000,
        *,
        dispute_id: str = "dp_1",
        payment_id: str = "pi_1",
        at: int = 120,
        currency: str = "USD",
    ) -> Json: ...

    def unrelated(self) -> Json: ...

    def signed(
        self, event: Json | bytes, *, at: datetime | None = None, event_id: str | None = None
    ) -> Delivery: ...


def _bytes(event: Json | bytes) -> bytes:
    # With blanks and non-ASCII characters, as a vendor may write it: only the exact bytes verify.
    if isinstance(event, bytes):
        return event
    return json.dumps(event, indent=1, ensure_ascii=False).encode()


class Dodo:
    """Dodo Payments, signing by Standard Webhooks."""

    name: Literal["dodo", "stripe"] = "dodo"

    def __init__(self, secret: str = DODO_SECRET) -> None:
        self.secret = secret

    def payment(
        self,
        status: Payment = "succeeded",
        amount: int = 1000,
        *,
        currency: str = "USD",
        payment_id: str = "pi_1",
        metadata: Mapping[str, object] | None = None,
        at: int = 0,
    ) -> Json:
        has_failed = status == "failed"
        return self._event(
            f"payment.{status}",
            at,
            {
                "payload_type": "Payment",
                "payment_id": payment_id,
                "business_id": "bus_dodo",
                "brand_id": "bus_dodo",
                "status": status,
                "total_amount": amount,
                "currency": currency,
                "tax": 0,
                "settlement_amount": amount,
                "settlement_currency": currency,
                "settlement_tax": 0,
                "billing": {"country": "IN", "city": "Pune", "street": None, "zipcode": "411001"},
                "customer": _DODO_CUSTOMER,
                "metadata": dict(metadata or {}),
                "created_at": _text(at),
                "updated_at": _text(at),
                "digital_products_delivered": False,
                "disputes": [],
                "refunds": [],
                "includes_usage": False,
                "is_multi_subscription": False,
                "is_update_payment_method": False,
                "payment_provider": "dodo",
                "payment_method": "upi" if currency == "INR" else "card",
                "retry_attempt": 0,
                "service_periods": [],
                "subscription_ids": [],
                "error_code": "INSUFFICIENT_FUNDS" if has_failed else None,
                "error_message": "The card has insufficient funds." if has_failed else None,
                "product_cart": [{"product_id": "pdt_credit", "quantity": 1}],
            },
        )

    def refund(
        self,
        amount: int | None = 1000,
        *,
        failed: bool = False,
        refund_id: str = "re_1",
        payment_id: str = "pi_1",
        at: int = 60,
        is_partial: bool = False,
        currency: str = "USD",
    ) -> Json:
        status = "failed" if failed else "succeeded"
        return self._event(
            f"refund.{status}",
            at,
            {
                "payload_type": "Refund",
                "refund_id": refund_id,
                "payment_id": payment_id,
                "business_id": "bus_dodo",
                "brand_id": "bus_dodo",
                "amount": amount,
                "currency": currency,
                "is_partial": is_partial,
                "status": status,
                "reason": "asked for",
                "customer": _DODO_CUSTOMER,
                "metadata": {},
                "created_at": _text(at),
            },
        )

    def dispute(
        self,
        status: str,
        amount: int | str = 1000,
        *,
        dispute_id: str = "dp_1",
        payment_id: str = "pi_1",
        at: int = 120,
        currency: str = "USD",
    ) -> Json:
        return self._event(
            f"dispute.{status}",
            at,
            {
                "payload_type": "Dispute",
                "dispute_id": dispute_id,
                "payment_id": payment_id,
                "business_id": "bus_dodo",
                "amount": str(amount),
                "currency": currency,
                "dispute_stage": "dispute",
                "dispute_status": f"dispute_{status}",
                "remarks": None,
                "created_at": _text(at),
            },
        )

    def unrelated(self) -> Json:
        return self._event(
            "license_key.created",
            0,
            {
                "payload_type": "LicenseKey",
                "id": "lic_1",
                "brand_id": "bus_dodo",
                "source": "auto",
                "business_id": "bus_dodo",
                "customer_id": "cus_dodo",
                "product_id": "pdt_1",
                "key": "KEY",
                "status": "active",
                "instances_count": 0,
                "created_at": _text(0),
            },
        )

    def _event(self, type_: str, at: int, data: Json) -> Json:
        return {"business_id": "bus_dodo", "type": type_, "timestamp": _text(at), "data": data}

    def signed(
        self, event: Json | bytes, *, at: datetime | None = None, event_id: str | None = None
    ) -> Delivery:
        body = _bytes(event)
        webhook_id = event_id or f"evt_{next(_numbers)}"
        moment = at or datetime.now(UTC)
        headers = {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": Webhook(self.secret).sign(
                webhook_id, moment, body.decode(errors="replace")
            ),
        }
        return Delivery(body, headers)


_DODO_CUSTOMER = {
    "customer_id": "cus_dodo",
    "email": "asha@example.com",
    "name": "Ashā",
    "phone_number": None,
}


class Stripe:
    """Stripe, signing with `t=…,v1=…`."""

    name: Literal["dodo", "stripe"] = "stripe"

    def __init__(self, secret: str = STRIPE_SECRET) -> None:
        self.secret = secret

    def payment(
        self,
        status: Payment = "succeeded",
        amount: int = 1000,
        *,
        currency: str = "USD",
        payment_id: str = "pi_1",
        metadata: Mapping[str, object] | None = None,
        at: int = 0,
    ) -> Json:
        type_, state = _INTENTS[status]
        error = {
            "type": "card_error",
            "code": "card_declined",
            "decline_code": "insufficient_funds",
            "message": "Your card has insufficient funds.",
        }
        intent = {
            "id": payment_id,
            "object": "payment_intent",
            "amount": amount,
            "amount_capturable": 0,
            "amount_received": amount if status == "succeeded" else 0,
            "application": None,
            "cancellation_reason": "abandoned" if status == "cancelled" else None,
            "capture_method": "automatic",
            "confirmation_method": "automatic",
            "created": _seconds(at),
            "currency": currency.lower(),
            "customer": "cus_stripe",
            "last_payment_error": error if status == "failed" else None,
            "latest_charge": f"ch_{payment_id}",
            "livemode": False,
            "metadata": dict(metadata or {}),
            "on_behalf_of": None,
            "payment_method": "pm_1",
            "payment_method_types": ["card"],
            "payment_record": None,
            "review": None,
            "setup_future_usage": None,
            "source": None,
            "status": state,
        }
        return self.event(type_, at, intent)

    def session(
        self,
        type_: str = "checkout.session.completed",
        *,
        payment_status: str = "paid",
        payment_id: str | None = "pi_1",
        metadata: Mapping[str, object] | None = None,
        at: int = 1,
    ) -> Json:
        session = {
            "id": "cs_test_1",
            "object": "checkout.session",
            "amount_subtotal": 1000,
            "amount_total": None if payment_id is None else 1000,
            "automatic_tax": {"enabled": False, "liability": None, "status": None},
            "billing_address_collection": None,
            "created": _seconds(at),
            "currency": None if payment_id is None else "usd",
            "custom_fields": [],
            "custom_text": {},
            "customer": None,
            "customer_creation": "if_required",
            "expires_at": _seconds(at + 86_400),
            "invoice": None,
            "livemode": False,
            "locale": None,
            "metadata": dict(metadata or {}),
            "mode": "setup" if payment_id is None else "payment",
            "origin_context": None,
            "payment_intent": payment_id,
            "payment_link": None,
            "payment_method_collection": "if_required",
            "payment_method_types": ["card"],
            "payment_status": payment_status,
            "redirect_on_completion": "always",
            "setup_intent": None,
            "shipping_options": [],
            "status": "complete",
            "submit_type": None,
            "subscription": None,
            "ui_mode": "hosted_page",
        }
        return self.event(type_, at, session)

    def refund(
        self,
        amount: int = 1000,
        *,
        failed: bool = False,
        refund_id: str = "re_1",
        payment_id: str = "pi_1",
        at: int = 60,
        type_: str | None = None,
        status: str | None = None,
        currency: str = "USD",
    ) -> Json:
        state = status or ("failed" if failed else "succeeded")
        default = "refund.failed" if failed else "refund.created"
        refund = self.refund_object(amount, state, refund_id, payment_id, at)
        return self.event(type_ or default, at, {**refund, "currency": currency.lower()})

    def refund_object(
        self, amount: int, status: str, refund_id: str, payment_id: str, at: int
    ) -> Json:
        return {
            "id": refund_id,
            "object": "refund",
            "amount": amount,
            "balance_transaction": None,
            "charge": f"ch_{payment_id}",
            "created": _seconds(at),
            "currency": "usd",
            "customer": None,
            "failure_balance_transaction": None,
            "metadata": {},
            "payment_intent": payment_id,
            "payment_method": None,
            "pending_reason": None,
            "reason": None,
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": status,
            "transfer_reversal": None,
        }

    def refunded_charge(
        self, refunds: list[Json] | None, payment_id: str = "pi_1", at: int = 61
    ) -> Json:
        """`charge.refunded`. Without `refunds` it has no list, as in newer versions of the API."""
        charge: Json = {
            "id": f"ch_{payment_id}",
            "object": "charge",
            "amount": 1000,
            "amount_captured": 1000,
            "amount_refunded": 1000,
            "application": None,
            "application_fee": None,
            "balance_transaction": "txn_1",
            "billing_details": {"address": None, "email": None, "name": None, "phone": None},
            "captured": True,
            "created": _seconds(0),
            "currency": "usd",
            "customer": None,
            "disputed": False,
            "failure_balance_transaction": None,
            "livemode": False,
            "metadata": {},
            "on_behalf_of": None,
            "paid": True,
            "payment_intent": payment_id,
            "refunded": True,
            "review": None,
            "source": None,
            "source_transfer": None,
            "status": "succeeded",
            "transfer": None,
        }
        if refunds is not None:
            url = f"/v1/charges/ch_{payment_id}/refunds"
            charge["refunds"] = {"object": "list", "data": refunds, "has_more": False, "url": url}
        return self.event("charge.refunded", at, charge)

    def dispute(
        self,
        status: Dispute,
        amount: int = 1000,
        *,
        dispute_id: str = "dp_1",
        payment_id: str = "pi_1",
        at: int = 120,
        currency: str = "USD",
    ) -> Json:
        type_, state = _DISPUTES[status]
        return self.dispute_event(
            type_,
            state,
            amount,
            dispute_id=dispute_id,
            payment_id=payment_id,
            at=at,
            currency=currency,
        )

    def dispute_event(
        self,
        type_: str,
        status: str,
        amount: int = 1000,
        *,
        dispute_id: str = "dp_1",
        payment_id: str = "pi_1",
        at: int = 120,
        currency: str = "USD",
    ) -> Json:
        dispute = {
            "id": dispute_id,
            "object": "dispute",
            "amount": amount,
            "balance_transactions": [],
            "charge": f"ch_{payment_id}",
            "created": _seconds(120),
            "currency": currency.lower(),
            "enhanced_eligibility_types": [],
            "evidence": {"product_description": None, "uncategorized_text": None},
            "evidence_details": {"due_by": None, "has_evidence": False, "past_due": False},
            "is_charge_refundable": False,
            "livemode": False,
            "metadata": {},
            "payment_intent": payment_id,
            "reason": "product_not_received",
            "status": status,
        }
        return self.event(type_, at, dispute)

    def unrelated(self) -> Json:
        customer = {"id": "cus_stripe", "object": "customer", "created": _seconds(0)}
        return self.event("customer.created", 0, customer)

    def event(self, type_: str, at: int, object_: Json) -> Json:
        return {
            "id": f"evt_{next(_numbers)}",
            "object": "event",
            "api_version": "2026-10-28.endive",
            "created": _seconds(at),
            "data": {"object": object_},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "type": type_,
        }

    def signed(
        self, event: Json | bytes, *, at: datetime | None = None, event_id: str | None = None
    ) -> Delivery:
        if event_id is not None and isinstance(event, dict):
            event = {**event, "id": event_id}
        body = _bytes(event)
        signed_at = int((at or datetime.now(UTC)).timestamp())
        signature = stripe_signature(body, self.secret, signed_at)
        return Delivery(body, {"stripe-signature": f"t={signed_at},v1={signature}"})


def stripe_signature(body: bytes, secret: str, signed_at: int) -> str:
    signed = str(signed_at).encode() + b"." + body
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


_INTENTS: Mapping[Payment, tuple[str, str]] = {
    "succeeded": ("payment_intent.succeeded", "succeeded"),
    "failed": ("payment_intent.payment_failed", "requires_payment_method"),
    "processing": ("payment_intent.processing", "processing"),
    "cancelled": ("payment_intent.canceled", "canceled"),
}
_DISPUTES: Mapping[Dispute, tuple[str, str]] = {
    "opened": ("charge.dispute.created", "needs_response"),
    "challenged": ("charge.dispute.updated", "under_review"),
    "won": ("charge.dispute.closed", "won"),
    "lost": ("charge.dispute.closed", "lost"),
}


def _text(at: int) -> str:
    return (BEGAN + timedelta(seconds=at)).isoformat().replace("+00:00", "Z")


def _seconds(at: int) -> int:
    return int((BEGAN + timedelta(seconds=at)).timestamp())
