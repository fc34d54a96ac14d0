"""What is known of payments: facts by the provider's own ids, in whatever order they come.

A fact that comes again changes nothing, and one that is older than what is known already changes
nothing either: a payment that succeeded stays so, a dispute that ended stays so. What follows from
the facts for the ledger is decided in `target` and done in `settle`.

Facts of one payment are noted one after the other: a refund and its payment that came at once would
each miss the other, and nobody would look at the refund again.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from metering.ids import BusinessId, ChargeId, CheckoutId, PurchaseId
from metering.purchase import statements
from metering.purchase.reversal_target import (
    PaymentStatus,
    Provider,
    ReversalKind,
    ReversalStatus,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFact:
    """A payment as its provider tells it; amounts in minor units of `currency`.

    `purchase_id`, `charge_id`: what it is for, if the payment carries that with it.
    """

    provider: Provider
    payment_id: str
    status: PaymentStatus
    amount_minor: int
    currency: str
    occurred_at: datetime
    purchase_id: PurchaseId | None = None
    charge_id: ChargeId | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReversalFact:
    """A refund or a dispute of a payment; `amount_minor` None: of all of it.

    `currency`: None: that of the payment. `began_at`: when a refund was asked for; None: nobody
    says, so it may be part of a total that is told of the payment.
    """

    provider: Provider
    kind: ReversalKind
    reversal_id: str
    payment_id: str
    status: ReversalStatus
    occurred_at: datetime
    amount_minor: int | None = None
    currency: str | None = None
    began_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PaidFor:
    """What a payment is for: a purchase, a checkout, or nobody knows yet."""

    purchase_id: PurchaseId | None
    checkout_id: CheckoutId | None

    @property
    def is_known(self) -> bool:
        """Tell whether there is something to follow from it."""
        return self.purchase_id is not None or self.checkout_id is not None


def lock_payment(
    conn: Connection, business_id: BusinessId, provider: Provider, payment_id: str
) -> None:
    """Wait until nobody else notes a fact of a payment. The first of all locks of a purchase."""
    values = {"business_id": business_id, "provider": provider, "payment_id": payment_id}
    conn.execute(statements.LOCK_PAYMENT, values)


def note_payment(conn: Connection, business_id: BusinessId, fact: PaymentFact) -> PaidFor:
    """Keep what is said of a payment; its purchase is due to be settled, its charge looked at.

    Locks: the payment, then its charge, then its purchase.
    """
    values = {
        "business_id": business_id,
        "provider": fact.provider,
        "payment_id": fact.payment_id,
        "status": fact.status,
        "amount_minor": fact.amount_minor,
        "currency": fact.currency,
        "purchase_id": fact.purchase_id,
        "charge_id": fact.charge_id,
        "failure": fact.failure,
        "occurred_at": fact.occurred_at,
    }
    lock_payment(conn, business_id, fact.provider, fact.payment_id)
    row = conn.execute(statements.NOTE_PAYMENT, values).one()
    paid_for = PaidFor(row.purchase_id, row.checkout_id)
    if paid_for.is_known and fact.status != "pending":
        conn.execute(statements.WAKE_CHARGE, row._asdict())
    return _due(conn, paid_for)


def note_reversal(conn: Connection, business_id: BusinessId, fact: ReversalFact) -> PaidFor:
    """Keep what is said of a refund or dispute; the purchase, if known, is due to be settled.

    Locks: the payment, then its charge, then its purchase.
    """
    values = {
        "business_id": business_id,
        "provider": fact.provider,
        "kind": fact.kind,
        "reversal_id": fact.reversal_id,
        "payment_id": fact.payment_id,
        "status": fact.status,
        "amount_minor": fact.amount_minor,
        "currency": fact.currency,
        "occurred_at": fact.occurred_at,
        "began_at": fact.began_at,
    }
    lock_payment(conn, business_id, fact.provider, fact.payment_id)
    conn.execute(statements.NOTE_REVERSAL, values)
    row = conn.execute(statements.PAYMENT, values).one_or_none()
    if row is None:
        return PaidFor(None, None)
    return _due(conn, PaidFor(row.purchase_id, row.checkout_id))


def _due(conn: Connection, paid_for: PaidFor) -> PaidFor:
    """Mark the purchase; its charge is locked first, as by everybody who settles both."""
    if paid_for.purchase_id is not None:
        values = {"purchase_id": paid_for.purchase_id}
        conn.execute(statements.LOCK_CHARGE, values)
        conn.execute(statements.MARK_DUE, values)
    return paid_for
