"""`gullak purchase`: orders of credit, their payments, and taking credit back."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from sqlalchemy import Connection

from metering.ids import BusinessId, CustomerId, PurchaseId
from metering.payment.charges.charge import run_charge
from metering.payment.checkouts.page import NewPage, open_page
from metering.payment.manual import (
    DisputeStatus,
    PaidOrder,
    ShopDispute,
    ShopPayment,
    ShopRefund,
    dispute_by_hand,
    pay_by_hand,
    record_paid_order,
    refund_by_hand,
)
from metering.payment.purchase_details import KnownPurchase, know_purchase
from metering.purchase.purchases import NewPurchase, Purchase, order_purchase, page_of_purchases
from metering.purchase.reversal_target import PurchaseStatus
from worker.charging import charge_policy_of, open_gateway
from worker.cli.options import (
    AsJson,
    Business,
    CurrencyCode,
    Customer,
    Limit,
    Priority,
    ValidDays,
    Wide,
    minor,
)
from worker.cli.show import money, named, print_json, print_record, print_table
from worker.cli.target import DataDir, Target, business_of, open_target

app = typer.Typer(help="Orders of credit, paid and taken back.", no_args_is_help=True)

Said = TypeVar("Said")
PurchaseArgument = Annotated[str, typer.Argument(help="Purchase id.", metavar="PURCHASE")]
OfPayment = Annotated[int | None, minor("--amount", "Of what was paid. Default: all of it.")]


@app.command("record")
def record(
    *,
    customer: Customer,
    currency: CurrencyCode,
    paid: Annotated[int, minor("--paid", "What was paid.")],
    order: Annotated[str, typer.Option(help="Order number: once per business.")],
    credit: Annotated[
        int | None, minor("--credit", "What it is worth. Default: what was paid.")
    ] = None,
    valid_days: ValidDays = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Record a paid order; a worker credits it. The same order again is the same purchase."""
    paid_order = PaidOrder(
        order_id=order,
        customer_id=customer,
        currency=currency,
        paid=paid,
        credit=credit,
        valid_days=valid_days,
    )
    with open_target(data_dir) as target:
        with target.transaction() as conn:
            purchase_id = record_paid_order(conn, business_of(conn, business), paid_order)
        is_woken = _wake_credit(target, purchase_id)
    if as_json:
        print_json({"purchase_id": purchase_id, "worker_woken": is_woken})
        return
    worth = money(paid if credit is None else credit, currency, target.settings.currencies)
    later = "" if is_woken else " (the broker is away: the next sweep of a worker finds it)"
    typer.echo(f"{purchase_id} is recorded; a worker credits {worth}{later}")


def _wake_credit(target: Target, purchase_id: PurchaseId) -> bool:
    """Wake the credit after the commit; a broker that is away only costs a sweep's period."""
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


@app.command("create")
def create(
    *,
    customer: Customer,
    package: Annotated[
        str | None, typer.Option(help="Package id; or an amount of one's own.", metavar="ID")
    ] = None,
    currency: Annotated[str | None, typer.Option(help="ISO 4217 code.", metavar="CODE")] = None,
    price: Annotated[int | None, minor("--price", "What it costs.")] = None,
    credit: Annotated[
        int | None, minor("--credit", "What it is worth. Default: the price.")
    ] = None,
    valid_days: ValidDays = None,
    priority: Priority = None,
    order: Annotated[
        str | None, typer.Option(help="Order number: once per business. Default: its id.")
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Order credit and print the purchase's id; it is pending until its payment has succeeded."""
    new = NewPurchase(
        order_id=order,
        package_id=package,
        currency=currency,
        price=price,
        credit=credit,
        valid_days=valid_days,
        priority=priority,
    )
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        purchase = order_purchase(conn, business_id, CustomerId(customer), new)
    if as_json:
        print_json(purchase)
    else:
        typer.echo(purchase.purchase_id)


@app.command("list")
def list_all(
    *,
    customer: Annotated[
        str | None, typer.Option("--customer", "-c", help="Of this customer only.", metavar="ID")
    ] = None,
    status: Annotated[PurchaseStatus | None, typer.Option(help="Only those.")] = None,
    limit: Limit = 20,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List purchases, newest first."""
    with open_target(data_dir) as target, target.transaction() as conn:
        found = page_of_purchases(
            conn,
            business_of(conn, business),
            page=limit,
            customer_id=None if customer is None else CustomerId(customer),
            status=status,
        )
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [_row(purchase, target) for purchase in found], wide=wide)


_COLUMNS: Final = (
    "purchase_id",
    "status",
    "price#",
    "credit#",
    "called back#",
    "customer_id",
    "shortfall#",
    "order",
    "payment",
    "created_at",
    "pay at",
)


def _row(purchase: Purchase, target: Target) -> tuple[object, ...]:
    decimals = target.settings.currencies
    return (
        purchase.purchase_id,
        purchase.status,
        money(purchase.price_minor, purchase.currency, decimals),
        money(purchase.credit_minor, purchase.currency, decimals),
        money(purchase.reversed_minor, purchase.currency, decimals),
        purchase.customer_id,
        money(purchase.shortfall_minor, purchase.currency, decimals),
        purchase.order_id,
        None if purchase.provider is None else f"{purchase.provider} {purchase.payment_id}",
        purchase.created_at,
        purchase.payment_url,
    )


@app.command("show")
def show(
    *,
    purchase: PurchaseArgument,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show a purchase with its payments, refunds and disputes."""
    with open_target(data_dir) as target, target.transaction() as conn:
        known = know_purchase(conn, business_of(conn, business), PurchaseId(purchase))
    _print(known, target, as_json=as_json)


@app.command("page")
def page(
    *,
    purchase: PurchaseArgument,
    account: Annotated[
        str | None, typer.Option(help="Provider account. Default: the only one.", metavar="ID")
    ] = None,
    return_url: Annotated[
        str | None, typer.Option(help="Where the customer comes back to from that page.")
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Open a page of a provider where the customer pays; the same one if asked for again."""
    new, purchase_id = NewPage(account_id=account, return_url=return_url), PurchaseId(purchase)
    with open_target(data_dir) as target:
        with target.transaction() as conn:
            business_id = business_of(conn, business)
            charge_id = open_page(conn, business_id, purchase_id, new)
        run_charge(target.transaction, open_gateway, charge_id, charge_policy_of(target.settings))
        with target.transaction() as conn:
            known = know_purchase(conn, business_id, purchase_id)
    _print(known, target, as_json=as_json)


@app.command("pay")
def pay(
    *,
    purchase: PurchaseArgument,
    payment: Annotated[
        str | None,
        typer.Option(
            help="Id of the payment: the provider's, which accepts it, or one of your own."
            " Default: the order number.",
            metavar="ID",
        ),
    ] = None,
    amount: Annotated[int | None, minor("--amount", "Default: the price.")] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Say that a purchase was paid; it is credited now."""
    said = ShopPayment(payment_id=payment, amount=amount)
    _say(pay_by_hand, said, purchase, business, data_dir, as_json=as_json)


@app.command("refund")
def refund(
    *,
    purchase: PurchaseArgument,
    refund_id: Annotated[str, typer.Option("--refund", help="Id of the refund.", metavar="ID")],
    amount: OfPayment = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Say that its payment was refunded; the same share of the credit is called back."""
    said = ShopRefund(refund_id=refund_id, amount=amount)
    _say(refund_by_hand, said, purchase, business, data_dir, as_json=as_json)


@app.command("dispute")
def dispute(
    *,
    purchase: PurchaseArgument,
    dispute_id: Annotated[str, typer.Option("--dispute", help="Id of the dispute.", metavar="ID")],
    status: Annotated[DisputeStatus, typer.Option(help="How it stands: won is won by the shop.")],
    amount: OfPayment = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Say where a dispute of its payment stands: open freezes the credit, lost takes it back."""
    said = ShopDispute(dispute_id=dispute_id, status=status, amount=amount)
    _say(dispute_by_hand, said, purchase, business, data_dir, as_json=as_json)


def _say(
    note: Callable[[Connection, BusinessId, PurchaseId, Said], None],
    said: Said,
    purchase: str,
    business: str | None,
    data_dir: Path | None,
    *,
    as_json: bool,
) -> None:
    """Note what is said of a purchase, and print what becomes of it."""
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id, purchase_id = business_of(conn, business), PurchaseId(purchase)
        note(conn, business_id, purchase_id, said)
        known = know_purchase(conn, business_id, purchase_id)
    _print(known, target, as_json=as_json)


def _print(known: KnownPurchase, target: Target, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "purchase": known.purchase,
                "payments": [payment._asdict() for payment in known.payments],
                "reversals": [reversal._asdict() for reversal in known.reversals],
            }
        )
        return
    print_record(named(_COLUMNS, _row(known.purchase, target)))
    decimals = target.settings.currencies
    payments = [
        (
            f"{payment.provider} {payment.payment_id}",
            payment.status,
            money(payment.amount_minor, payment.currency, decimals),
            payment.failure or payment.parked_reason,
            payment.occurred_at,
        )
        for payment in known.payments
    ]
    print_table(("payment", "status", "amount#", "why not~", "at"), payments, "payments")
    reversals = [
        (
            f"{reversal.kind} {reversal.reversal_id}",
            reversal.payment_id,
            reversal.status,
            "all"
            if reversal.amount_minor is None
            else money(reversal.amount_minor, reversal.currency, decimals),
            reversal.occurred_at,
        )
        for reversal in known.reversals
    ]
    print_table(("what", "of payment", "status", "amount#", "at"), reversals, "reversals")
