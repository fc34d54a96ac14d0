"""Purchases: orders of credit, their payments, and reports of payments by the shop."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Query
from pydantic import AliasPath, BeforeValidator, Field
from sqlalchemy import Connection

from api.charging import ask_for_payment
from api.idempotency import REPEATABLE, Idempotent
from api.paging import Page, Paged
from api.parameters import CustomerPath, PurchasePath
from api.tenant import Reader, Tenant, Writer
from api.views import View
from metering.ids import BusinessId, Currency, CustomerId, EntryId, PackageId, PurchaseId
from metering.payment.checkouts.page import NewPage, open_page
from metering.payment.facts import PURCHASE_KEY, purchase_details
from metering.payment.manual import (
    ShopDispute,
    ShopPayment,
    ShopRefund,
    record_payment,
    record_reversal,
)
from metering.purchase.purchases import (
    NewPurchase,
    Origin,
    Purchase,
    order_purchase,
    page_of_purchases,
)
from metering.purchase.reversal_target import (
    PaymentStatus,
    Provider,
    PurchaseStatus,
    ReversalKind,
    ReversalStatus,
)

router: Final = APIRouter(tags=["purchases"])

Report = TypeVar("Report")


def _metadata(purchase_id: str) -> dict[str, str]:
    return {PURCHASE_KEY: purchase_id}


class PurchaseOut(View):
    """A purchase. Amounts in minor units; `credit` cannot be spent before `settled_at`.

    `refunded` and `lost`: how much of the credit refunds and lost disputes have called back;
    `shortfall`: the part of that which was spent already and nobody owes. `metadata`: the shop
    passes it to its payment provider with the payment, which is matched by it. `payment_url`: where
    the customer pays, while a page is open for it. `provider` `local`: a payment simulator of
    earlier versions.
    """

    id: PurchaseId = Field(validation_alias="purchase_id")
    business_id: BusinessId
    customer_id: CustomerId
    order_id: str
    origin: Origin
    package_id: PackageId | None
    status: PurchaseStatus
    currency: Currency
    price: int = Field(validation_alias="price_minor")
    credit: int = Field(validation_alias="credit_minor")
    valid_days: int | None
    priority: int
    paid: int | None = Field(validation_alias="paid_minor")
    refunded: int = Field(validation_alias="refunded_minor")
    lost: int = Field(validation_alias="lost_minor")
    shortfall: int = Field(validation_alias="shortfall_minor")
    provider: Provider | None
    payment_id: str | None
    ledger_entry_id: EntryId | None = Field(validation_alias="entry_id")
    failure: str | None
    created_at: datetime
    paid_at: datetime | None
    settled_at: datetime | None
    payment_url: str | None
    # As a path, because mypy takes one alias for one field only.
    metadata: Annotated[dict[str, str], BeforeValidator(_metadata)] = Field(
        validation_alias=AliasPath("purchase_id")
    )


class PaymentOut(View):
    """A payment of a purchase; `parked_reason`: why it does not count, null if it does."""

    provider: Provider
    payment_id: str
    status: PaymentStatus
    amount: int = Field(validation_alias="amount_minor")
    currency: str
    failure: str | None
    parked_reason: str | None
    occurred_at: datetime


class ReversalOut(View):
    """A refund or a dispute of one of the payments; `amount` null: all that was paid.

    `kind` `refund_total`: the sum of all refunds, from a provider that does not report each. In
    another `currency` than its payment, it takes nothing until a person enters the share.
    """

    kind: ReversalKind
    id: str = Field(validation_alias="reversal_id")
    provider: Provider
    payment_id: str
    status: ReversalStatus
    amount: int | None = Field(validation_alias="amount_minor")
    currency: str
    occurred_at: datetime


class KnownPurchaseOut(PurchaseOut):
    """A purchase with its payments and their reversals, in the order in which they came."""

    payments: list[PaymentOut]
    reversals: list[ReversalOut]


@router.post("/customers/{customer_id}/purchases", status_code=201, response_model=PurchaseOut)
def make_purchase(
    tenant: Writer, customer_id: CustomerPath, new: NewPurchase, idempotency: Idempotent
) -> Purchase:
    """Order credit: a package, or an amount of your own. Pending until a payment has succeeded.

    The same `order_id` with the same content returns the same purchase as it is now.
    """
    idempotency.by(new.order_id)
    return tenant.run(order_purchase, customer_id, new)


@router.get("/purchases", response_model=Page[PurchaseOut])
def list_purchases(
    *,
    tenant: Reader,
    paged: Paged,
    customer_id: Annotated[CustomerId | None, Query(min_length=1, max_length=64)] = None,
    status: PurchaseStatus | None = None,
) -> Page[Purchase]:
    """List purchases, newest first."""
    rows = paged.rows(PurchaseId)
    return Page(items=tenant.run(page_of_purchases, customer_id=customer_id, status=status, **rows))


@router.get("/purchases/{purchase_id}", response_model=KnownPurchaseOut)
def show_purchase(tenant: Reader, purchase_id: PurchasePath) -> dict[str, Any]:
    """Return one purchase with its payments and their reversals."""
    return tenant.run(_details, purchase_id)


def _details(conn: Connection, business_id: BusinessId, purchase_id: PurchaseId) -> dict[str, Any]:
    """Return the fields of `KnownPurchaseOut`."""
    details = purchase_details(conn, business_id, purchase_id)
    return {
        **asdict(details.purchase),
        "payments": details.payments,
        "reversals": details.reversals,
    }


@router.post(
    "/purchases/{purchase_id}/page", response_model=KnownPurchaseOut, dependencies=REPEATABLE
)
def open_purchase_page(tenant: Writer, purchase_id: PurchasePath, new: NewPage) -> dict[str, Any]:
    """Open a page of a provider where the customer pays for a purchase: `payment_url`.

    A repeated call returns the same page. If the provider does not answer, it is asked again, and
    the purchase shows the address a little later.
    """
    ask_for_payment(tenant, tenant.run(open_page, purchase_id, new))
    return tenant.run(_details, purchase_id)


def _report(
    tenant: Tenant,
    purchase_id: PurchaseId,
    record: Callable[[Connection, BusinessId, PurchaseId, Report], None],
    report: Report,
) -> dict[str, Any]:
    """Record a report of the shop, and return the purchase as it is afterwards."""

    def work(conn: Connection, business_id: BusinessId) -> dict[str, Any]:
        record(conn, business_id, purchase_id, report)
        return _details(conn, business_id, purchase_id)

    return tenant.run(work)


# A report is stored by the id of its payment, refund or dispute: a second one changes nothing.
@router.post(
    "/purchases/{purchase_id}/payments", response_model=KnownPurchaseOut, dependencies=REPEATABLE
)
def pay_purchase(tenant: Writer, purchase_id: PurchasePath, report: ShopPayment) -> dict[str, Any]:
    """Report that a purchase was paid. It is credited once, if the payment covers its price.

    With the id of a provider's parked payment, that payment is accepted, whatever its amount; its
    refunds and disputes count from then on.
    """
    return _report(tenant, purchase_id, record_payment, report)


@router.post(
    "/purchases/{purchase_id}/refunds", response_model=KnownPurchaseOut, dependencies=REPEATABLE
)
def refund_purchase(
    tenant: Writer, purchase_id: PurchasePath, report: ShopRefund
) -> dict[str, Any]:
    """Report that the payment was refunded. The same share of the credit is called back."""
    return _report(tenant, purchase_id, record_reversal, report)


@router.post(
    "/purchases/{purchase_id}/disputes", response_model=KnownPurchaseOut, dependencies=REPEATABLE
)
def dispute_purchase(
    tenant: Writer, purchase_id: PurchasePath, report: ShopDispute
) -> dict[str, Any]:
    """Report the state of a dispute of the payment. While it is open, unspent credit is frozen."""
    return _report(tenant, purchase_id, record_reversal, report)
