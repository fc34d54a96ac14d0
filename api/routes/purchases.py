"""Purchases: orders of credit, what is known of their payments, and what the shop says of them."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final, TypeVar

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel
from sqlalchemy import Connection

from api.auth import Reader, Writer
from api.context import REPEATABLE, ApiScope, Scoped
from api.paging import Page, Paged
from api.routes.checkouts import ask_for
from api.routes.wallets import CustomerPath
from metering.access.keys import Principal
from metering.ids import BusinessId, Currency, CustomerId, EntryId, PackageId, PurchaseId
from metering.payment.checkouts.page import NewPage, open_page
from metering.payment.facts import PURCHASE_KEY, PurchaseDetails, purchase_details
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

PurchasePath = Annotated[PurchaseId, Path(min_length=1, max_length=64)]
Said = TypeVar("Said")


class PurchaseOut(BaseModel):
    """A purchase. Amounts in minor units; nothing of `credit` is spendable before it is settled.

    `refunded` and `lost`: how much of the credit refunds and lost disputes have called back;
    `shortfall`: what of that was spent already and nobody owes. `metadata`: for the shop to hand to
    its payment provider with the payment, by which it is found again. `payment_url`: where its
    customer pays, if a page was opened for it and as long as that is open.
    """

    id: PurchaseId
    business_id: BusinessId
    customer_id: CustomerId
    order_id: str
    origin: Origin
    package_id: PackageId | None
    status: PurchaseStatus
    currency: Currency
    price: int
    credit: int
    valid_days: int | None
    priority: int
    paid: int | None
    refunded: int
    lost: int
    shortfall: int
    provider: Provider | None
    payment_id: str | None
    ledger_entry_id: EntryId | None
    failure: str | None
    created_at: datetime
    paid_at: datetime | None
    settled_at: datetime | None
    payment_url: str | None
    metadata: dict[str, str]


class PaymentOut(BaseModel):
    """A payment of a purchase; `parked_reason`: why nothing follows from it, null: it counts."""

    provider: Provider
    payment_id: str
    status: PaymentStatus
    amount: int
    currency: str
    failure: str | None
    parked_reason: str | None
    occurred_at: datetime


class ReversalOut(BaseModel):
    """A refund or a dispute of one of the payments; `amount` null: of all that was paid.

    `refund_total`: what was refunded in all, as far as the provider names no refunds. In another
    `currency` than its payment, it takes nothing until somebody says what share it is.
    """

    kind: ReversalKind
    id: str
    provider: Provider
    payment_id: str
    status: ReversalStatus
    amount: int | None
    currency: str
    occurred_at: datetime


class KnownPurchaseOut(PurchaseOut):
    """A purchase with its payments and their reversals, in the order in which they came."""

    payments: list[PaymentOut]
    reversals: list[ReversalOut]


def _out(purchase: Purchase) -> PurchaseOut:
    return PurchaseOut(
        id=purchase.purchase_id,
        business_id=purchase.business_id,
        customer_id=purchase.customer_id,
        order_id=purchase.order_id,
        origin=purchase.origin,
        package_id=purchase.package_id,
        status=purchase.status,
        currency=purchase.currency,
        price=purchase.price_minor,
        credit=purchase.credit_minor,
        valid_days=purchase.valid_days,
        priority=purchase.priority,
        paid=purchase.paid_minor,
        refunded=purchase.refunded_minor,
        lost=purchase.lost_minor,
        shortfall=purchase.shortfall_minor,
        provider=purchase.provider,
        payment_id=purchase.payment_id,
        ledger_entry_id=purchase.entry_id,
        failure=purchase.failure,
        created_at=purchase.created_at,
        paid_at=purchase.paid_at,
        settled_at=purchase.settled_at,
        payment_url=purchase.payment_url,
        metadata={PURCHASE_KEY: purchase.purchase_id},
    )


def _known_out(known: PurchaseDetails) -> KnownPurchaseOut:
    payments = [
        PaymentOut(
            provider=payment.provider,
            payment_id=payment.payment_id,
            status=payment.status,
            amount=payment.amount_minor,
            currency=payment.currency,
            failure=payment.failure,
            parked_reason=payment.parked_reason,
            occurred_at=payment.occurred_at,
        )
        for payment in known.payments
    ]
    reversals = [
        ReversalOut(
            kind=reversal.kind,
            id=reversal.reversal_id,
            provider=reversal.provider,
            payment_id=reversal.payment_id,
            status=reversal.status,
            amount=reversal.amount_minor,
            currency=reversal.currency,
            occurred_at=reversal.occurred_at,
        )
        for reversal in known.reversals
    ]
    purchase = _out(known.purchase).model_dump()
    return KnownPurchaseOut(**purchase, payments=payments, reversals=reversals)


@router.post("/customers/{customer_id}/purchases", status_code=201)
def make_purchase(
    *,
    caller: Writer,
    scope: Scoped,
    customer_id: CustomerPath,
    new: NewPurchase,
    request: Request,
) -> PurchaseOut:
    """Order credit: a package, or an amount of one's own. Pending until a payment has succeeded.

    The same `order_id` with the same content answers with the same purchase as it is now.
    """
    # Without a number of its own nobody can tell a second try from a second order.
    request.state.repeatable = new.order_id is not None
    return _out(
        scope.run(
            caller.business_id,
            lambda conn: order_purchase(conn, caller.business_id, customer_id, new),
        )
    )


@router.get("/purchases")
def list_purchases(
    *,
    caller: Reader,
    scope: Scoped,
    paged: Paged,
    customer_id: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
    status: PurchaseStatus | None = None,
) -> Page[PurchaseOut]:
    """List purchases, newest first."""
    found = scope.run(
        caller.business_id,
        lambda conn: page_of_purchases(
            conn,
            caller.business_id,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(PurchaseId),
            customer_id=None if customer_id is None else CustomerId(customer_id),
            status=status,
        ),
    )
    return Page(items=[_out(purchase) for purchase in found])


@router.get("/purchases/{purchase_id}")
def show_purchase(caller: Reader, scope: Scoped, purchase_id: PurchasePath) -> KnownPurchaseOut:
    """Return one purchase with its payments and their reversals."""
    return _known_out(
        scope.run(
            caller.business_id, lambda conn: purchase_details(conn, caller.business_id, purchase_id)
        )
    )


@router.post("/purchases/{purchase_id}/page", dependencies=REPEATABLE)
def open_purchase_page(
    caller: Writer, scope: Scoped, purchase_id: PurchasePath, new: NewPage
) -> KnownPurchaseOut:
    """Open a page of a provider where the customer pays for a purchase: `payment_url`.

    Asked for again, it is the same page. A provider that does not answer is asked again; then the
    address is in the purchase a little later.
    """
    business_id = caller.business_id
    charge_id = scope.run(business_id, lambda conn: open_page(conn, business_id, purchase_id, new))
    ask_for(scope, business_id, charge_id)
    return show_purchase(caller, scope, purchase_id)


def _follow(
    scope: ApiScope,
    caller: Principal,
    purchase_id: PurchaseId,
    note: Callable[[Connection, BusinessId, PurchaseId, Said], None],
    said: Said,
) -> KnownPurchaseOut:
    """Note what the shop says, and return the purchase as it is after it."""

    def work(conn: Connection) -> PurchaseDetails:
        note(conn, caller.business_id, purchase_id, said)
        return purchase_details(conn, caller.business_id, purchase_id)

    return _known_out(scope.run(caller.business_id, work))


# What is said of a payment is kept by its id: saying it once more changes nothing.
@router.post("/purchases/{purchase_id}/payments")
def pay_purchase(
    caller: Writer, scope: Scoped, purchase_id: PurchasePath, said: ShopPayment, request: Request
) -> KnownPurchaseOut:
    """Say that a purchase was paid. It is credited once, if that pays for all of it.

    A payment that a provider tells of is accepted by the provider's own id, whatever was paid; its
    refunds and disputes count from then on.
    """
    request.state.repeatable = True
    return _follow(scope, caller, purchase_id, record_payment, said)


@router.post("/purchases/{purchase_id}/refunds")
def refund_purchase(
    caller: Writer, scope: Scoped, purchase_id: PurchasePath, said: ShopRefund, request: Request
) -> KnownPurchaseOut:
    """Say that the payment was refunded. The same share of the credit is called back."""
    request.state.repeatable = True
    return _follow(scope, caller, purchase_id, record_reversal, said)


@router.post("/purchases/{purchase_id}/disputes")
def dispute_purchase(
    caller: Writer, scope: Scoped, purchase_id: PurchasePath, said: ShopDispute, request: Request
) -> KnownPurchaseOut:
    """Say where a dispute of the payment stands. Open: what is left of the credit is frozen."""
    request.state.repeatable = True
    return _follow(scope, caller, purchase_id, record_reversal, said)
