"""`gullak customer`, `balance` and `wallet`: the customers and their wallets."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final

from typer import Option

from metering.erasure import erase_customer
from metering.ids import CustomerId
from metering.ledger.customers import (
    Customer,
    CustomerFilter,
    NewCustomer,
    create_customer,
    get_customer,
    list_customers,
)
from metering.ledger.wallets import Overdraft, WalletView, set_overdraft, wallets_of
from worker.cli.command import Group, Options, Tenant, command
from worker.cli.options import CurrencyCode, CustomerArgument, Limit, minor
from worker.cli.options import Customer as CustomerOption
from worker.cli.page import Page, View, field, table
from worker.cli.show import major, print_record

app = Group()
wallet = Group()

# `remainder`: the cost below one minor unit, which the next debit takes.
WALLETS: Final = table(
    """
        wallet_id, balance# = $balance_minor, available# = $available_minor,
        frozen# = $frozen_minor, remainder (minor)# = remainder, entries# = version
    """,
    title="wallets",
)
_NEW: Final = Options(
    email=Annotated[str, Option(help="Where to write to.")],
    name=Annotated[str, Option(help="Its name.")],
    billing_currency=Annotated[
        str | None, Option(help="The price list that applies; default: the first currency.")
    ],
)


@app.add("create", field("customer_id"))
def create(tenant: Tenant, new: Annotated[NewCustomer, _NEW]) -> dict[str, object]:
    """Make a customer, with a wallet at zero in every currency, and print its id."""
    customer_id = tenant.run(create_customer, new, tenant.target.currencies)
    return {"customer_id": customer_id, "business_id": tenant.business, **new.model_dump()}


@app.add(
    "list",
    table(
        "customer_id, email, name~, billing_currency, created_at",
        more="there may be more: --after {last.customer_id}",
    ),
)
def list_all(
    tenant: Tenant,
    email: Annotated[str | None, Option(help="A part of it, in any case.")] = None,
    name: Annotated[str | None, Option(help="A part of it, in any case.")] = None,
    limit: Limit = 20,
    after: Annotated[
        CustomerId | None, Option(help="Only customers after this one in the list.", metavar="ID")
    ] = None,
) -> list[Customer]:
    """List the customers of a business, newest first."""
    wanted = CustomerFilter(email=email, name=name)
    return tenant.run(list_customers, wanted, page=limit, after=after)


def _print_customer(found: dict[str, Any], view: View) -> None:
    print_record({name: value for name, value in found.items() if name != "wallets"})
    WALLETS.print(found["wallets"], view)


@app.add("show", Page(_print_customer))
def show(tenant: Tenant, customer: CustomerArgument) -> dict[str, object]:
    """Show a customer and its wallets."""
    found = asdict(tenant.run(get_customer, customer))
    return {**found, "wallets": _wallets(tenant, customer)}


@app.add(
    "erase",
    Page(lambda erased, _view: print_record(erased)),
    exit_code=lambda erased: 0 if erased["is_complete"] else 1,
)
def erase(tenant: Tenant, customer: CustomerArgument) -> dict[str, object]:
    """Erase the personal data of a customer; entries and balances stay.

    Exits 1 if something was kept because it waits for a decision: decide it, and run this again.
    """
    erased = tenant.run(erase_customer, customer)
    return {**asdict(erased), "is_complete": erased.is_complete}


@command(WALLETS)
def balance(tenant: Tenant, customer: CustomerArgument) -> Sequence[object]:
    """Show the balance of each wallet of a customer."""
    return _wallets(tenant, customer)


@wallet.add("overdraft", Page(lambda shown, view: WALLETS.print([shown], view)))
def overdraft(
    tenant: Tenant,
    customer: CustomerOption,
    currency: CurrencyCode,
    limit: Annotated[int, minor("--limit", "How far below zero; 0: not at all.")],
) -> dict[str, object]:
    """Set how far below zero a debit that is not usage may go."""
    tenant.run(set_overdraft, customer, currency, Overdraft(limit=limit))
    return _shown(tenant, tenant.run(wallets_of, customer)[currency])


def _wallets(tenant: Tenant, customer: CustomerId) -> list[dict[str, object]]:
    return [_shown(tenant, view) for view in tenant.run(wallets_of, customer).values()]


def _shown(tenant: Tenant, view: WalletView) -> dict[str, object]:
    """Return a wallet as JSON shows it."""
    found, currencies = view.wallet, tenant.target.settings.currencies
    return {
        "wallet_id": found.wallet_id,
        "currency": found.currency,
        "balance_minor": found.balance_minor,
        "balance": major(found.balance_minor, found.currency, currencies),
        "available_minor": view.available_minor,
        "frozen_minor": found.frozen_minor,
        "remainder": found.remainder,
        "version": found.version,
        "overdraft_limit_minor": found.overdraft_limit_minor,
        "updated_at": view.updated_at,
    }
