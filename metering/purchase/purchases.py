"""Purchases: an order of credit, pending until its payment has succeeded, then settled once."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator
from sqlalchemy import Connection

from metering.db import get_one, row, rows
from metering.errors import FieldProblem, IdempotencyConflictError, InvalidInputError, NotFoundError
from metering.fields import CurrencyName, Filled64, Filled255, PositiveMinor
from metering.ids import BusinessId, Currency, CustomerId, EntryId, PackageId, PurchaseId, new_id
from metering.ledger.entry import PRIORITY_DEFAULT, Priority
from metering.ledger.wallets import wallet_of
from metering.purchase import statements
from metering.purchase.packages import Days, Package, get_package
from metering.purchase.reversal_target import Provider, PurchaseStatus

Origin = Literal["order", "top_up", "checkout"]


class NewPurchase(BaseModel):
    """An order of credit: a package, or a price of its own.

    `order_id`: the shop's number, once per business; by default the purchase's id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    order_id: Filled255 | None = None
    package_id: Filled64 | None = None
    currency: CurrencyName | None = None
    price: PositiveMinor | None = None
    credit: PositiveMinor | None = None
    valid_days: Days | None = None
    priority: Priority | None = None

    @model_validator(mode="after")
    def _is_one_of_two(self) -> "NewPurchase":
        own = (self.currency, self.price, self.credit, self.valid_days, self.priority)
        if self.package_id is not None and any(value is not None for value in own):
            raise ValueError("a package brings its own currency, price and credit")
        if self.package_id is None and (self.currency is None or self.price is None):
            raise ValueError("give a package_id, or a currency and a price")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a purchase: price and credit in minor units, and when the credit expires."""

    currency: str
    price_minor: int
    credit_minor: int
    valid_days: int | None = None
    priority: int = PRIORITY_DEFAULT
    package_id: PackageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """A purchase as stored; amounts in minor units. See the migration for each column."""

    purchase_id: PurchaseId
    business_id: BusinessId
    customer_id: CustomerId
    currency: Currency
    order_id: str
    origin: Origin
    package_id: PackageId | None
    price_minor: int
    credit_minor: int
    valid_days: int | None
    priority: int
    status: PurchaseStatus
    provider: Provider | None
    payment_id: str | None
    paid_minor: int | None
    entry_id: EntryId | None
    refunded_minor: int
    lost_minor: int
    shortfall_minor: int
    failure: str | None
    is_due: bool
    created_at: datetime
    paid_at: datetime | None
    settled_at: datetime | None
    # The hosted page, while the customer can pay there.
    payment_url: str | None

    @property
    def reversed_minor(self) -> int:
        """Return how much of the credit was taken back."""
        return self.refunded_minor + self.lost_minor


def terms_of(package: Package) -> Terms:
    """Return the terms of a package. Raises: NotFoundError if it is off sale."""
    if package.archived_at is not None:
        raise NotFoundError("package on sale", package.package_id)
    return Terms(
        currency=package.currency,
        price_minor=package.price_minor,
        credit_minor=package.credit_minor,
        valid_days=package.valid_days,
        priority=package.priority,
        package_id=package.package_id,
    )


def order_purchase(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId, new: NewPurchase
) -> Purchase:
    """Make a pending purchase; the same order again is the same purchase.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such package, customer or
    wallet. IdempotencyConflictError if the order number was used with other content.
    """
    if new.package_id is not None:
        terms = terms_of(get_package(conn, business_id, PackageId(new.package_id)))
    elif new.currency is None or new.price is None:
        raise InvalidInputError(FieldProblem("price", "is missing"))
    else:
        terms = Terms(
            currency=new.currency,
            price_minor=new.price,
            credit_minor=new.price if new.credit is None else new.credit,
            valid_days=new.valid_days,
            priority=PRIORITY_DEFAULT if new.priority is None else new.priority,
        )
    return place(conn, business_id, customer_id, terms, order_id=new.order_id)


def place(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    terms: Terms,
    *,
    order_id: str | None = None,
    origin: Origin = "order",
) -> Purchase:
    """Make a pending purchase on these terms, once per order number.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such wallet.
    IdempotencyConflictError if the order number was used with other content.
    """
    wallet_of(conn, business_id, customer_id, terms.currency)
    purchase_id = PurchaseId(new_id("pur"))
    values = {"customer_id": customer_id, "origin": origin, **asdict(terms)}
    key = {"business_id": business_id, "order_id": order_id or purchase_id}
    made = conn.execute(statements.INSERT, {"purchase_id": purchase_id, **key, **values})
    if (inserted := made.one_or_none()) is not None:
        return row(Purchase, inserted)
    earlier = row(Purchase, conn.execute(statements.BY_ORDER, key).one())
    if any(getattr(earlier, name) != value for name, value in values.items()):
        raise IdempotencyConflictError(key["order_id"], "order_id")
    return earlier


def get_purchase(conn: Connection, business_id: BusinessId, purchase_id: PurchaseId) -> Purchase:
    """Return a purchase. Raises: NotFoundError if the business has no such purchase."""
    values = {"business_id": business_id, "purchase_id": purchase_id}
    return get_one(Purchase, conn.execute(statements.PURCHASE, values), "purchase", purchase_id)


def lock_purchase(conn: Connection, purchase_id: PurchaseId) -> Purchase:
    """Return a purchase, locked. Raises: NotFoundError if there is no such purchase."""
    found = conn.execute(statements.LOCK, {"purchase_id": purchase_id})
    return get_one(Purchase, found, "purchase", purchase_id)


def page_of_purchases(
    conn: Connection,
    business_id: BusinessId,
    *,
    page: int,
    offset: int = 0,
    after: PurchaseId | None = None,
    customer_id: CustomerId | None = None,
    status: PurchaseStatus | None = None,
) -> list[Purchase]:
    """Return up to `page` purchases of a business, newest first, older than `after`."""
    values = {"business_id": business_id, "page": page, "offset": offset, "after": after}
    wanted = {"customer_id": customer_id, "status": status}
    return rows(Purchase, conn.execute(statements.PURCHASE_PAGE, {**values, **wanted}))
