"""`gullak customer` and `gullak balance`: who pays, and what is left."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from metering.erasure import erase_customer
from metering.errors import NotFoundError
from metering.ids import BusinessId, CustomerId
from metering.ledger import statements
from metering.ledger.customers import CustomerFilter, list_customers
from metering.ledger.wallets import NewCustomer, WalletView, create_customer, wallets_of
from worker.cli.options import AsJson, Business, Limit
from worker.cli.show import major, money, print_json, print_record, print_table
from worker.cli.target import DataDir, Target, business_of, open_target

app = typer.Typer(help="The customers who pay, and their wallets.", no_args_is_help=True)

CustomerArgument = Annotated[str, typer.Argument(help="Customer id.", metavar="CUSTOMER")]


@app.command("create")
def create(
    *,
    email: Annotated[str, typer.Option(help="Where to write to.")],
    name: Annotated[str, typer.Option(help="Its name.")],
    business: Business = None,
    billing_currency: Annotated[
        str | None, typer.Option(help="The price list that applies; default: the first currency.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make a customer, with a wallet at zero in every currency, and print its id."""
    new = NewCustomer(email=email, name=name, billing_currency=billing_currency)
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        customer_id = create_customer(conn, business_id, new, target.currencies)
    if as_json:
        print_json({"customer_id": customer_id, "business_id": business_id, **new.model_dump()})
    else:
        typer.echo(customer_id)


@app.command("list")
def list_all(
    *,
    email: Annotated[str | None, typer.Option(help="A part of it, in any case.")] = None,
    name: Annotated[str | None, typer.Option(help="A part of it, in any case.")] = None,
    limit: Limit = 20,
    after: Annotated[
        str | None,
        typer.Option(help="Go on after this customer: the last of a page.", metavar="ID"),
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the customers of a business, newest first."""
    wanted = CustomerFilter(email=email, name=name)
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        last = None if after is None else CustomerId(after)
        found = list_customers(conn, business_id, wanted, page=limit, after=last)
    if as_json:
        print_json(found)
        return
    rows = [(c.customer_id, c.email, c.name, c.billing_currency, c.created_at) for c in found]
    print_table(("customer_id", "email", "name~", "billing_currency", "created_at"), rows)
    if len(found) == limit:
        typer.echo(f"there may be more: --after {found[-1].customer_id}")


@app.command("show")
def show(
    *,
    customer: CustomerArgument,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show a customer and its wallets."""
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        found = _customer(conn, business_id, customer)
        wallets = [*wallets_of(conn, business_id, CustomerId(customer)).values()]
    if as_json:
        print_json({**found, "wallets": [shown_wallet(view, target) for view in wallets]})
        return
    print_record(found)
    print_wallets(wallets, target)


@app.command("erase")
def erase(
    *,
    customer: CustomerArgument,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Erase the personal data of a customer; entries and balances stay.

    Exits 1 if something waits for a decision and was kept: decide it, and run this again.
    """
    with open_target(data_dir) as target, target.transaction() as conn:
        erased = erase_customer(conn, business_of(conn, business), CustomerId(customer))
    record = {**asdict(erased), "is_complete": erased.is_complete}
    if as_json:
        print_json(record)
    else:
        print_record(record)
    if not erased.is_complete:
        raise typer.Exit(1)


def balance(
    *,
    customer: CustomerArgument,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show the balance of each of a customer's wallets."""
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        wallets = [*wallets_of(conn, business_id, CustomerId(customer)).values()]
    if as_json:
        print_json([shown_wallet(view, target) for view in wallets])
    else:
        print_wallets(wallets, target)


def _customer(conn: Connection, business_id: BusinessId, customer_id: str) -> dict[str, Any]:
    row = conn.execute(
        statements.CUSTOMER, {"business_id": business_id, "customer_id": customer_id}
    ).one_or_none()
    if row is None:
        raise NotFoundError("customer", customer_id)
    return dict(row._mapping)  # noqa: SLF001  # the public name of a row's mapping


def shown_wallet(view: WalletView, target: Target) -> dict[str, object]:
    """Return a wallet as JSON shows it."""
    wallet = view.wallet
    return {
        "wallet_id": wallet.wallet_id,
        "currency": wallet.currency,
        "balance_minor": wallet.balance_minor,
        "balance": major(wallet.balance_minor, wallet.currency, target.settings.currencies),
        "available_minor": view.available_minor,
        "frozen_minor": wallet.frozen_minor,
        "remainder": wallet.remainder,
        "version": wallet.version,
        "overdraft_limit_minor": wallet.overdraft_limit_minor,
        "updated_at": view.updated_at,
    }


def print_wallets(wallets: list[WalletView], target: Target) -> None:
    """Print wallets as a table."""
    decimals = target.settings.currencies
    rows = [
        (
            view.wallet.wallet_id,
            money(view.wallet.balance_minor, view.wallet.currency, decimals),
            money(view.available_minor, view.wallet.currency, decimals),
            money(view.wallet.frozen_minor, view.wallet.currency, decimals),
            view.wallet.remainder,
            view.wallet.version,
        )
        for view in wallets
    ]
    # What was charged below one minor unit is taken with the next debit.
    columns = ("wallet_id", "balance#", "available#", "frozen#", "remainder (minor)#", "entries#")
    print_table(columns, rows, "wallets")
