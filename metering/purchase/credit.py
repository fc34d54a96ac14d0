"""From a paid order to credit in the wallet: recorded first, credited by a task, exactly once."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Connection, Row

from metering.errors import IdempotencyConflictError, NotFoundError
from metering.ids import BusinessId, CustomerId, EntryId, PurchaseId, new_id
from metering.ledger.accounts import wallet_of
from metering.ledger.entry import Posting
from metering.ledger.post import post
from metering.money import INT64_MAX
from metering.purchase import statements
from metering.text import FILLED

Minor = Annotated[int, Field(strict=True, gt=0, le=INT64_MAX)]


class PaidOrder(BaseModel):
    """An order that was paid. `credit`: what it is worth, if not what was paid (a bonus, tax)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order_id: Annotated[str, StringConstraints(max_length=255, pattern=FILLED)]
    customer_id: Annotated[str, StringConstraints(max_length=64, pattern=FILLED)]
    currency: Annotated[str, StringConstraints(min_length=1, max_length=10)]
    paid: Minor
    credit: Minor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """A purchase as stored; amounts in minor units."""

    purchase_id: PurchaseId
    business_id: BusinessId
    customer_id: CustomerId
    currency: str
    order_id: str
    paid_minor: int
    credit_minor: int
    status: Literal["paid", "credited"]
    entry_id: EntryId | None
    paid_at: datetime
    credited_at: datetime | None


def record_paid_order(conn: Connection, business_id: BusinessId, order: PaidOrder) -> PurchaseId:
    """Record a paid order; the same order again is the same purchase.

    Raises:
        NotFoundError, UnsupportedCurrencyError: there is no such wallet.
        IdempotencyConflictError: the order number was used with other content.

    """
    wallet_of(conn, business_id, CustomerId(order.customer_id), order.currency)
    values = {
        "customer_id": order.customer_id,
        "currency": order.currency,
        "paid_minor": order.paid,
        "credit_minor": order.paid if order.credit is None else order.credit,
    }
    key = {"business_id": business_id, "order_id": order.order_id}
    made = conn.execute(
        statements.INSERT, {"purchase_id": new_id("pur"), **key, **values}
    ).scalar_one_or_none()
    if made is not None:
        return PurchaseId(made)
    known = conn.execute(statements.BY_ORDER, key).one()
    if any(getattr(known, name) != value for name, value in values.items()):
        raise IdempotencyConflictError(order.order_id)
    return PurchaseId(known.purchase_id)


def credit_purchase(conn: Connection, purchase_id: PurchaseId) -> bool:
    """Credit the wallet of a paid purchase; return False if that had been done.

    Raises:
        NotFoundError: there is no such purchase.

    """
    purchase = _locked(conn, purchase_id)
    if purchase.status == "credited":
        return False
    wallet = wallet_of(conn, purchase.business_id, purchase.customer_id, purchase.currency)
    posting = Posting(
        wallet_id=wallet.wallet_id,
        kind="purchase",
        is_credit=True,
        amount_minor=purchase.credit_minor,
        event_type="payment",
        reason=f"order {purchase.order_id}",
        reference=purchase.purchase_id,
    )
    (entry,) = post(conn, [posting])
    conn.execute(statements.MARK_CREDITED, {"purchase_id": purchase_id, "entry_id": entry.entry_id})
    return True


def _locked(conn: Connection, purchase_id: PurchaseId) -> Purchase:
    row: Row[Any] | None = conn.execute(statements.LOCK, {"purchase_id": purchase_id}).one_or_none()
    if row is None:
        raise NotFoundError("purchase", purchase_id)
    return Purchase(**row._mapping)  # noqa: SLF001


def uncredited(conn: Connection, page: int) -> list[PurchaseId]:
    """Return purchases that are paid and not credited, oldest first."""
    return list(conn.execute(statements.UNCREDITED, {"page": page}).scalars())
