"""Payments as stored, and the choice of the one that pays for a purchase or a checkout."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, TextClause

from metering.db import rows
from metering.ids import BusinessId, CheckoutId, PurchaseId
from metering.purchase import statements
from metering.purchase.reversal_target import PaymentStatus, Provider


class PaymentKey(NamedTuple):
    """The key of a payment: its id at its provider is not unique by itself."""

    business_id: BusinessId
    provider: Provider
    payment_id: str


class Payment(NamedTuple):
    """A payment as stored. `is_accepted`: a person accepted its amount as full payment."""

    business_id: BusinessId
    provider: Provider
    payment_id: str
    status: PaymentStatus
    amount_minor: int
    currency: str
    purchase_id: PurchaseId | None
    checkout_id: CheckoutId | None
    failure: str | None
    parked_reason: str | None
    is_accepted: bool
    occurred_at: datetime

    @property
    def key(self) -> PaymentKey:
        """Return its key."""
        return PaymentKey(self.business_id, self.provider, self.payment_id)


def payments_of(conn: Connection, statement: TextClause, **values: object) -> list[Payment]:
    """Return the payments that a statement finds."""
    return rows(Payment, conn.execute(statement, values))


def choose_payment(
    conn: Connection, payments: Iterable[Payment], *, price_minor: int, currency: str
) -> Payment | None:
    """Return the first payment that pays the whole price, or that a person has accepted.

    Those that cannot pay are parked. All of them have succeeded.
    """
    chosen = None
    for payment in payments:
        if payment.currency != currency:
            park_payment(conn, payment.key, "other_currency")
        elif payment.amount_minor < price_minor and not payment.is_accepted:
            park_payment(conn, payment.key, "underpaid")
        else:
            chosen = chosen or payment
    return chosen


def park_payment(conn: Connection, key: PaymentKey, reason: str) -> None:
    """Let a payment wait for a person, unless another process is storing a fact of it."""
    conn.execute(statements.PARK_PAYMENT, {**key._asdict(), "reason": reason})
