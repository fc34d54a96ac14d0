"""The forms of Stripe's events, as far as they are read."""

from typing import Annotated, Final, Generic, TypeVar

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
    """The newest refunds of a charge."""

    data: tuple[Refund, ...] = ()
    has_more: bool = False


class Charge(Form):
    """A charge, with the total that was refunded of it."""

    id: Filled255
    amount: Minor
    # Missing in the oldest versions of the API, which captured all or nothing.
    amount_captured: Minor | None = None
    amount_refunded: Minor
    currency: CurrencyText
    captured: bool = True
    payment_intent: Filled255 | None = None
    metadata: dict[str, object] | None = None
    failure_code: str | None = None
    failure_message: str | None = None
    refunds: Refunds | None = None

    @property
    def captured_minor(self) -> int:
        """Return the amount that was captured."""
        return self.amount if self.amount_captured is None else self.amount_captured


class Dispute(Form):
    """A dispute. Amount and currency are unchecked, because an open dispute needs neither."""

    id: Filled255
    amount: object = None
    payment_intent: Filled255 | None = None
    charge: Filled255 | None = None
    currency: object = None
    status: Filled255


Subject = TypeVar("Subject", Intent, Session, Refund, Charge, Dispute)


class Data(Form, Generic[Subject]):
    """The part of an event that holds its subject."""

    object: Subject


class Event(Form, Generic[Subject]):
    """An event about an intent, a session, a refund, a charge or a dispute."""

    created: Seconds
    data: Data[Subject]
