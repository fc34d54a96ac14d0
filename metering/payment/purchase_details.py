"""What is known of a purchase: its payments, and what of them was refunded or disputed."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from metering.ids import BusinessId, PurchaseId
from metering.purchase import statements
from metering.purchase.purchases import Purchase, get_purchase
from metering.purchase.reversal_target import PaymentStatus, Provider, ReversalKind, ReversalStatus


class KnownPayment(NamedTuple):
    """A payment; `parked_reason`: why nothing follows from it, None where something does."""

    provider: Provider
    payment_id: str
    status: PaymentStatus
    amount_minor: int
    currency: str
    failure: str | None
    parked_reason: str | None
    occurred_at: datetime


class KnownReversal(NamedTuple):
    """A refund or a dispute of a payment; `amount_minor` None: of all of it."""

    provider: Provider
    kind: ReversalKind
    reversal_id: str
    payment_id: str
    status: ReversalStatus
    amount_minor: int | None
    currency: str
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class KnownPurchase:
    """A purchase with its payments and their reversals, in the order in which they came."""

    purchase: Purchase
    payments: list[KnownPayment]
    reversals: list[KnownReversal]


def know_purchase(
    conn: Connection, business_id: BusinessId, purchase_id: PurchaseId
) -> KnownPurchase:
    """Return a purchase with all that is known of it.

    Raises:
        NotFoundError: the business has no such purchase.

    """
    values = {"business_id": business_id, "purchase_id": purchase_id}
    return KnownPurchase(
        get_purchase(conn, business_id, purchase_id),
        [KnownPayment(*row) for row in conn.execute(statements.PAYMENTS_OF_PURCHASE, values)],
        [KnownReversal(*row) for row in conn.execute(statements.REVERSALS_OF_PURCHASE, values)],
    )
