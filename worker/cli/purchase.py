"""`gullak purchase`: orders of credit, their payments, refunds and disputes."""

from typing import Annotated, Final

from typer import Argument, Option

from metering.ids import BusinessId, PurchaseId
from metering.payment.facts import PurchaseDetails, purchase_details
from metering.payment.manual import (
    DisputeStatus,
    PaidOrder,
    ShopDispute,
    ShopPayment,
    ShopRefund,
    record_paid_order,
    record_payment,
    record_reversal,
)
from metering.purchase.purchases import NewPurchase, Purchase, order_purchase, page_of_purchases
from metering.purchase.reversal_target import PurchaseStatus
from worker.cli.command import Group, Options, Tenant
from worker.cli.options import (
    Credit,
    CurrencyCode,
    Customer,
    Limit,
    OfCustomer,
    Priority,
    ProviderAccount,
    ReturnUrl,
    ValidDays,
    minor,
)
from worker.cli.page import Page, Sentence, View, columns, field, table
from worker.cli.show import money, print_table
from worker.cli.target import Target

app = Group()

PurchaseArgument = Annotated[PurchaseId, Argument(help="Purchase id.", metavar="PURCHASE")]
OfPayment = Annotated[int | None, minor("--amount", "A part of the payment. Default: all of it.")]

_PURCHASE: Final = columns(
    """
        purchase_id, status, price# = $price_minor, credit# = $credit_minor,
        called back# = $reversed_minor, customer_id, shortfall# = $shortfall_minor,
        order = order_id, payment, created_at, pay at = payment_url
    """,
    payment=lambda made: made.provider and f"{made.provider} {made.payment_id}",
)
_PAYMENT: Final = columns(
    """
        payment, status, amount# = $amount_minor, why not~ = why_not, at = occurred_at
    """,
    payment=lambda payment: f"{payment.provider} {payment.payment_id}",
    why_not=lambda payment: payment.failure or payment.parked_reason,
)


def _print(found: PurchaseDetails, view: View) -> None:
    reversals = [
        (
            f"{reversal.kind} {reversal.reversal_id}",
            reversal.payment_id,
            reversal.status,
            "all"
            if reversal.amount_minor is None
            else view.money(reversal.amount_minor, reversal.currency),
            reversal.occurred_at,
        )
        for reversal in found.reversals
    ]
    view.record(_PURCHASE, found.purchase)
    view.table(_PAYMENT, found.payments, "payments")
    print_table(("what", "of payment", "status", "amount#", "at"), reversals, "reversals")


DETAILS: Final = Page(_print)


_PAID: Final = Options(
    customer_id=Customer,
    currency=CurrencyCode,
    paid=Annotated[int, minor("--paid", "What was paid.")],
    order_id=Annotated[str, Option("--order", help="Order number: once per business.")],
    credit=Annotated[int | None, minor("--credit", "What it is worth. Default: what was paid.")],
    valid_days=ValidDays,
)


@app.add("record")
def record(target: Target, business: BusinessId, paid: Annotated[PaidOrder, _PAID]) -> Sentence:
    """Record a paid order; a worker credits it. The same order again is the same purchase."""
    with target.transaction() as conn:
        purchase_id = record_paid_order(conn, business, paid)
    is_woken = _wake_credit(target, purchase_id)
    credit_minor = paid.paid if paid.credit is None else paid.credit
    worth = money(credit_minor, paid.currency, target.settings.currencies)
    later = "" if is_woken else " (the broker is away: the next sweep of a worker finds it)"
    text = f"{purchase_id} is recorded; a worker credits {worth}{later}"
    return Sentence({"purchase_id": purchase_id, "worker_woken": is_woken}, text)


def _wake_credit(target: Target, purchase_id: PurchaseId) -> bool:
    """Wake the credit after the commit; if the broker is away, it waits for the next sweep."""
    # Imported late: Celery takes as long to import as all the rest, and only this command sends.
    from worker.app import app as celery  # noqa: PLC0415
    from worker.broker import BrokerAwayError  # noqa: PLC0415
    from worker.task import wake  # noqa: PLC0415

    celery.conf.update({"broker_url": target.settings.celery_broker_url()})
    try:
        wake("purchase.credit", purchase_id)
    except BrokerAwayError:
        return False
    return True


_NEW: Final = Options(
    package_id=Annotated[
        str | None, Option("--package", help="Package id. Without one, name a price.", metavar="ID")
    ],
    currency=Annotated[str | None, Option(help="ISO 4217 code.", metavar="CODE")],
    price=Annotated[int | None, minor("--price", "What it costs.")],
    credit=Credit,
    valid_days=ValidDays,
    priority=Priority,
    order_id=Annotated[
        str | None, Option("--order", help="Order number: once per business. Default: its id.")
    ],
)


@app.add("create", field("purchase_id"))
def create(tenant: Tenant, customer: Customer, new: Annotated[NewPurchase, _NEW]) -> Purchase:
    """Order credit and print the purchase's id; it is pending until its payment succeeds."""
    return tenant.run(order_purchase, customer, new)


@app.add("list", table(_PURCHASE))
def list_all(
    tenant: Tenant,
    customer: OfCustomer = None,
    status: Annotated[PurchaseStatus | None, Option(help="Only these.")] = None,
    limit: Limit = 20,
) -> list[Purchase]:
    """List purchases, newest first."""
    return tenant.run(page_of_purchases, page=limit, customer_id=customer, status=status)


@app.add("show", DETAILS)
def show(tenant: Tenant, purchase: PurchaseArgument) -> PurchaseDetails:
    """Show a purchase with its payments, refunds and disputes."""
    return tenant.run(purchase_details, purchase)


@app.add("page", DETAILS)
def page(
    target: Target,
    business: BusinessId,
    purchase: PurchaseArgument,
    account: ProviderAccount = None,
    return_url: ReturnUrl = None,
) -> PurchaseDetails:
    """Open a provider's page where the customer pays; to ask again returns the same one."""
    # Imported late: only this command charges.
    from metering.payment.charges.charge import run_charge  # noqa: PLC0415
    from metering.payment.checkouts.page import NewPage, open_page  # noqa: PLC0415
    from worker.charging import charge_policy_of, open_gateway  # noqa: PLC0415

    new = NewPage(account_id=account, return_url=return_url)
    with target.transaction() as conn:
        charge_id = open_page(conn, business, purchase, new)
    run_charge(target.transaction, open_gateway, charge_id, charge_policy_of(target.settings))
    with target.transaction() as conn:
        return purchase_details(conn, business, purchase)


_PAYMENT_NEW: Final = Options(
    payment_id=Annotated[
        str | None,
        Option(
            "--payment",
            help="Id of the payment: the provider's, which accepts it, or one of your own."
            " Default: the order number.",
            metavar="ID",
        ),
    ],
    amount=Annotated[int | None, minor("--amount", "Default: the price.")],
)
_REFUND: Final = Options(
    refund_id=Annotated[str, Option("--refund", help="Id of the refund.", metavar="ID")],
    amount=OfPayment,
)
_DISPUTE: Final = Options(
    dispute_id=Annotated[str, Option("--dispute", help="Id of the dispute.", metavar="ID")],
    status=Annotated[DisputeStatus, Option(help="Its state; won: the merchant won.")],
    amount=OfPayment,
)


@app.add("pay", DETAILS)
def pay(
    tenant: Tenant, purchase: PurchaseArgument, new: Annotated[ShopPayment, _PAYMENT_NEW]
) -> PurchaseDetails:
    """Record that a purchase was paid; it is credited now."""
    tenant.run(record_payment, purchase, new)
    return tenant.run(purchase_details, purchase)


@app.add("refund", DETAILS)
def refund(
    tenant: Tenant, purchase: PurchaseArgument, new: Annotated[ShopRefund, _REFUND]
) -> PurchaseDetails:
    """Record that the payment was refunded; the same share of the credit is called back."""
    tenant.run(record_reversal, purchase, new)
    return tenant.run(purchase_details, purchase)


@app.add("dispute", DETAILS)
def dispute(
    tenant: Tenant, purchase: PurchaseArgument, new: Annotated[ShopDispute, _DISPUTE]
) -> PurchaseDetails:
    """Record the state of a dispute: open freezes the credit, lost takes it back."""
    tenant.run(record_reversal, purchase, new)
    return tenant.run(purchase_details, purchase)
