"""`gullak checkout`: a price that credit pays first, and a payment for the rest."""

from typing import Annotated, Final

import typer

from metering.ids import CheckoutId, CustomerId
from metering.payment.charges.charge import run_charge
from metering.payment.checkouts.begin import NewCheckout, begin_checkout
from metering.payment.checkouts.checkout import Checkout, get_checkout, page_of_checkouts
from worker.charging import charge_policy_of, open_gateway
from worker.cli.options import AsJson, Business, CurrencyCode, Customer, Limit, Wide, minor
from worker.cli.show import money, named, print_json, print_record, print_table
from worker.cli.target import DataDir, Target, business_of, open_target

app = typer.Typer(help="A price that credit pays first.", no_args_is_help=True)


@app.command("create")
def create(
    *,
    customer: Customer,
    currency: CurrencyCode,
    amount: Annotated[int, minor("--amount", "The price.")],
    key: Annotated[str, typer.Option(help="Idempotency key: once per business.")],
    account: Annotated[
        str | None,
        typer.Option(help="Provider account; not needed while one is in use.", metavar="ID"),
    ] = None,
    payment_method: Annotated[
        str | None,
        typer.Option(help="A saved one, charged at once. Default: a page of the provider."),
    ] = None,
    return_url: Annotated[
        str | None, typer.Option(help="Where the customer comes back to from that page.")
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Begin a checkout and ask for its payment; the same key again is the same checkout."""
    new = NewCheckout(
        amount=amount,
        currency=currency,
        idempotency_key=key,
        account_id=account,
        payment_method=payment_method,
        return_url=return_url,
    )
    with open_target(data_dir) as target:
        with target.transaction() as conn:
            business_id = business_of(conn, business)
            ttl_s = target.settings.checkout_ttl_s
            begun = begin_checkout(conn, business_id, CustomerId(customer), new, ttl_s=ttl_s)
        found = begun.checkout
        if found.status == "pending" and found.charge_id is not None:
            policy = charge_policy_of(target.settings)
            run_charge(target.transaction, open_gateway, found.charge_id, policy)
        with target.transaction() as conn:
            found = get_checkout(conn, business_id, found.checkout_id)
    _print(found, target, as_json=as_json)


@app.command("show")
def show(
    *,
    checkout: Annotated[str, typer.Argument(help="Checkout id.", metavar="CHECKOUT")],
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show a checkout."""
    with open_target(data_dir) as target, target.transaction() as conn:
        found = get_checkout(conn, business_of(conn, business), CheckoutId(checkout))
    _print(found, target, as_json=as_json)


@app.command("list")
def list_all(
    *,
    customer: Customer,
    limit: Limit = 50,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the checkouts of a customer, newest first."""
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        found = page_of_checkouts(conn, business_id, CustomerId(customer), page=limit)
    if as_json:
        print_json(found)
        return
    rows = [_row(checkout, target) for checkout in found]
    print_table(_COLUMNS, rows, wide=wide)


_COLUMNS: Final = (
    *("checkout_id", "by credit#", "to pay#", "status", "failure~", "created_at"),
    "pay at",
)


def _row(checkout: Checkout, target: Target) -> tuple[object, ...]:
    decimals = target.settings.currencies
    return (
        checkout.checkout_id,
        money(checkout.credit_minor, checkout.currency, decimals),
        money(checkout.payment_minor, checkout.currency, decimals),
        checkout.status,
        checkout.failure,
        checkout.created_at,
        checkout.payment_url,
    )


def _print(checkout: Checkout, target: Target, *, as_json: bool) -> None:
    if as_json:
        print_json(checkout)
    else:
        print_record(named(_COLUMNS, _row(checkout, target)))
