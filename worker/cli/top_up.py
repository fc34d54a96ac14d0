"""`gullak top-up`: wallets that buy credit when they are low."""

from typing import Annotated, Final

from typer import Option

from metering.payment.top_ups.top_up import (
    DECLINES_MAX,
    NewTopUp,
    TopUp,
    delete_top_up,
    enable_top_up,
    get_top_up,
    page_of_top_ups,
    set_top_up,
)
from worker.cli.command import Group, Options, Tenant
from worker.cli.options import CurrencyCode, Customer, Limit, ProviderAccount, minor
from worker.cli.page import Sentence, columns, record, table

app = Group()

_TOP_UP: Final = columns(
    """
        customer_id, at or below# = $threshold_minor, buys = package_id,
        in a day# = $day_cap_minor, in a month# = $month_cap_minor, off~ = disabled_reason,
        declines, not before = retry_at, under way = pending_purchase_id
    """,
    declines=lambda r: f"{r.declines} of {r.declines_max}",
)
_NEW: Final = Options(
    threshold=Annotated[int, minor("--threshold", "Buy at or below this balance.")],
    package_id=Annotated[str, Option("--package", help="The package to buy.", metavar="ID")],
    payment_method=Annotated[str, Option(help="The saved one that is charged.")],
    day_cap=Annotated[int, minor("--day-cap", "At most so much in a day.")],
    month_cap=Annotated[int, minor("--month-cap", "At most so much in a month.")],
    declines_max=Annotated[
        int | None, Option(help=f"Off after so many declines in a row. Default: {DECLINES_MAX}.")
    ],
    account_id=ProviderAccount,
)


@app.add("set", record(_TOP_UP))
def set_one(
    tenant: Tenant, customer: Customer, currency: CurrencyCode, new: Annotated[NewTopUp, _NEW]
) -> TopUp:
    """Set the rule of a wallet, or change it; days and months are those of UTC."""
    return tenant.run(set_top_up, customer, currency, new)


@app.add("show", record(_TOP_UP))
def show(tenant: Tenant, customer: Customer, currency: CurrencyCode) -> TopUp:
    """Show the rule of a wallet."""
    return tenant.run(get_top_up, customer, currency)


@app.add("list", table(_TOP_UP))
def list_all(tenant: Tenant, limit: Limit = 50) -> list[TopUp]:
    """List the rules of a business, those of the newest wallets first."""
    return tenant.run(page_of_top_ups, page=limit)


@app.add("delete")
def delete(tenant: Tenant, customer: Customer, currency: CurrencyCode) -> Sentence:
    """Delete the rule of a wallet."""
    tenant.run(delete_top_up, customer, currency)
    text = f"the {currency} wallet of {customer} is not topped up any more"
    return Sentence({"customer_id": customer, "currency": currency}, text)


@app.add("enable")
def enable(tenant: Tenant, customer: Customer, currency: CurrencyCode) -> Sentence:
    """Switch the rule of a wallet on again, and forget its declines."""
    enabled = tenant.run(enable_top_up, customer, currency)
    return Sentence(enabled, f"the {currency} wallet of {customer} is topped up again")
