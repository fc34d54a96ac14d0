"""The forms of Stripe's events, as far as they are read."""

from typing import Annotated, Final

from pydantic import Field

from metering.fields import CurrencyText, Filled255, Minor, PositiveMinor
from metering.payment.vendors.parsing import Form

_END_OF_YEAR_9999_S: Final = 253_402_300_799
Seconds = Annotated[int, Field(strict=True, ge=0, le=_END_OF_YEAR_9999_S)]


class StripeError(Form):
    """Why a payment was declined."""

    code: str | None = None
    decline_code: str | None = None
    message: str | None = None


class Intent(Form):
    """A PaymentIntent."""

    id: Filled255
    amount: Minor
    amount_received: Minor
    currency: CurrencyText
    metadata: dict[str, object] | None = None
    last_payment_error: StripeError | None = None
    cancellation_reason: str | None = None


class Session(Form):
    """A Checkout Session."""

    id: Filled255
    payment_intent: Filled255 | None = None
    payment_status: str
    amount_total: Minor | None = None
    currency: CurrencyText | None = None
    metadata: dict[str, object] | None = None


class Refund(Form):
    """A refund."""

    id: Filled255
    amount: PositiveMinor
    payment_intent: Filled255 | None = None
    charge: Filled255 | None = None
    currency: CurrencyText | None = None
    status: str | None = None
    created: Seconds | None = None


class Refunds(Form):
    """Refunds of a charge, the newest ones."""

    data: tuple[Refund, ...] = ()
    has_more: bool = False


class Charge(Form):
    """A charge, with what was refunded of it in all."""

    id: Filled255
    amount: Minor
    # Not in the oldest versions of the API, which captured all or nothing.
    amount_captured: Minor | None = None
    amount_refunded: Minor
    currency: CurrencyText
    captured: bool = True
    payment_intent: Filled255 | None = None
    metadata: dict[str, object] | None = None
    failure_code: str | None = None
    failure_message: str | None = None
    refunds: Refunds | None = None


class Dispute(Form):
    """A dispute; amount and currency as they came, because an open one needs neither."""

    id: Filled255
    # Read with care where it decides something.
    amount: object = None
    payment_intent: Filled255 | None = None
    charge: Filled255 | None = None
    currency: object = None
    status: Filled255


class IntentData(Form):
    """What an event is about."""

    object: Intent


class SessionData(Form):
    """What an event is about."""

    object: Session


class RefundData(Form):
    """What an event is about."""

    object: Refund


class ChargeData(Form):
    """What an event is about."""

    object: Charge


class DisputeData(Form):
    """What an event is about."""

    object: Dispute


class IntentEvent(Form):
    """An event about it."""

    created: Seconds
    data: IntentData


class SessionEvent(Form):
    """An event about it."""

    created: Seconds
    data: SessionData


class RefundEvent(Form):
    """An event about it."""

    created: Seconds
    data: RefundData


class ChargeEvent(Form):
    """An event about it."""

    created: Seconds
    data: ChargeData


class DisputeEvent(Form):
    """An event about it."""

    created: Seconds
    data: DisputeData
