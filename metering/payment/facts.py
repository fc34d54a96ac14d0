"""The facts about payments, refunds and disputes, in whatever order they arrive.

A fact that arrives again changes nothing, and neither does an older one: a payment that has
succeeded stays so, and so does a dispute that has ended. `purchase.reversal_target` derives from
the facts how much credit should be left, and `purchase.settle` posts the difference.

Facts of one payment are stored one after the other. Otherwise a refund and its payment that arrive
at once would each miss the other, and the refund would never be settled.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection

from metering.ids import BusinessId, ChargeId, CheckoutId, PurchaseId
from metering.payment import statements
from metering.payment.charges import statements as of_charges
from metering.purchase import statements as of_purchases
from metering.purchase.payments import PaymentKey
from metering.purchase.purchases import Purchase, get_purchase
from metering.purchase.reversal_target import PaymentStatus, Provider, ReversalKind, ReversalStatus

# The keys in a payment's metadata that name what it pays for. They are a wire format.
PURCHASE_KEY: Final = "gullak_purchase_id"
CHARGE_KEY: Final = "gullak_charge_id"
# Why an event is parked: a dispute was lost for an amount that cannot be read.
UNCLEAR_AMOUNT: Final = "unclear_amount"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFact:
    """A payment as its provider reports it; amounts are in minor units of `currency`.

    `purchase_id`, `charge_id`: what the payment's metadata names, if anything.
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
    """A refund or a dispute of a payment.

    `amount_minor` None: all of the payment. `currency` None: the payment's. `began_at`: when a
    refund was requested; None if unknown, so that a reported total may include it.
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
    """The purchase or checkout that a payment pays for; neither if that is not known yet."""

    purchase_id: PurchaseId | None
    checkout_id: CheckoutId | None

    @property
    def is_known(self) -> bool:
        """Tell whether one of them is known."""
        return self.purchase_id is not None or self.checkout_id is not None


class PaymentDetails(NamedTuple):
    """A payment of a purchase. `parked_reason`: why it was not credited; None if it was."""

    provider: Provider
    payment_id: str
    status: PaymentStatus
    amount_minor: int
    currency: str
    failure: str | None
    parked_reason: str | None
    occurred_at: datetime


class ReversalDetails(NamedTuple):
    """A refund or dispute of a purchase's payment; `amount_minor` None: all of the payment."""

    provider: Provider
    kind: ReversalKind
    reversal_id: str
    payment_id: str
    status: ReversalStatus
    amount_minor: int | None
    currency: str
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class PurchaseDetails:
    """A purchase with its payments and their reversals, in the order of their arrival."""

    purchase: Purchase
    payments: list[PaymentDetails]
    reversals: list[ReversalDetails]


def lock_payment(conn: Connection, key: PaymentKey) -> None:
    """Wait until no other process stores a fact of a payment. The first of a purchase's locks."""
    conn.execute(statements.LOCK_PAYMENT, key._asdict())


def note_payment(conn: Connection, business_id: BusinessId, fact: PaymentFact) -> PaidFor:
    """Store a fact of a payment, wake its charge, and mark its purchase as due.

    Locks: the payment, then its charge, then its purchase.
    """
    values = {"business_id": business_id, **asdict(fact)}
    conn.execute(statements.LOCK_PAYMENT, values)
    row = conn.execute(statements.NOTE_PAYMENT, values).one()
    paid_for = PaidFor(row.purchase_id, row.checkout_id)
    if paid_for.is_known and fact.status != "pending":
        conn.execute(of_charges.WAKE_CHARGE, row._asdict())
    return _mark_due(conn, paid_for)


def note_reversal(conn: Connection, business_id: BusinessId, fact: ReversalFact) -> PaidFor:
    """Store a fact of a refund or dispute, and mark its purchase as due if that is known.

    Locks: the payment, then its charge, then its purchase.
    """
    values = {"business_id": business_id, **asdict(fact)}
    conn.execute(statements.LOCK_PAYMENT, values)
    conn.execute(statements.NOTE_REVERSAL, values)
    row = conn.execute(statements.PAYMENT, values).one_or_none()
    if row is None:
        return PaidFor(None, None)
    return _mark_due(conn, PaidFor(row.purchase_id, row.checkout_id))


def _mark_due(conn: Connection, paid_for: PaidFor) -> PaidFor:
    """Mark the purchase. Its charge is locked first, as everywhere that both are locked."""
    if paid_for.purchase_id is not None:
        values = {"purchase_id": paid_for.purchase_id, "checkout_id": None}
        conn.execute(of_charges.LOCK_CHARGE_OF, values)
        conn.execute(of_purchases.MARK_DUE, values)
    return paid_for


def parked_reason(conn: Connection, key: PaymentKey) -> str | None:
    """Return why a paid payment is parked. Returns None if it is not, or was reversed."""
    found: str | None = conn.execute(statements.PARKED_REASON, key._asdict()).scalar_one_or_none()
    return found


def apply_parked(conn: Connection, key: PaymentKey) -> None:
    """Mark the parked events of a payment as applied, now that it is.

    Their facts were stored when they arrived, so they have been applied with the payment. Events of
    a parked payment stay parked until it is refunded.
    """
    if parked_reason(conn, key) is None:
        values = {**key._asdict(), "unclear": UNCLEAR_AMOUNT}
        conn.execute(statements.APPLY_PARKED, values)


def purchase_details(
    conn: Connection, business_id: BusinessId, purchase_id: PurchaseId
) -> PurchaseDetails:
    """Return a purchase with its payments and their reversals.

    Raises: NotFoundError if the business has no such purchase.
    """
    values = {"business_id": business_id, "purchase_id": purchase_id}
    return PurchaseDetails(
        get_purchase(conn, business_id, purchase_id),
        [PaymentDetails(*row) for row in conn.execute(statements.PAYMENTS_OF_PURCHASE, values)],
        [ReversalDetails(*row) for row in conn.execute(statements.REVERSALS_OF_PURCHASE, values)],
    )
