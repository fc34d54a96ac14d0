"""`gullak top-up`: wallets that buy credit when they are low."""

from typing import Annotated, Final

import typer

from metering.ids import CustomerId
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
from worker.cli.options import AsJson, Business, CurrencyCode, Customer, Limit, Wide, minor
from worker.cli.show import money, named, print_json, print_record, print_table
from worker.cli.target import DataDir, Target, business_of, open_target

app = typer.Typer(help="Wallets that buy credit when they are low.", no_args_is_help=True)


@app.command("set")
def set_one(
    *,
    customer: Customer,
    currency: CurrencyCode,
    threshold: Annotated[int, minor("--threshold", "Buy at or below this balance.")],
    package: Annotated[str, typer.Option(help="What is bought.", metavar="ID")],
    payment_method: Annotated[str, typer.Option(help="The saved one that is charged.")],
    day_cap: Annotated[int, minor("--day-cap", "At most so much in a day.")],
    month_cap: Annotated[int, minor("--month-cap", "At most so much in a month.")],
    declines_max: Annotated[
        int, typer.Option(help="Off after so many declines in a row.")
    ] = DECLINES_MAX,
    account: Annotated[
        str | None,
        typer.Option(help="Provider account; not needed while one is in use.", metavar="ID"),
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Set the rule of a wallet, or change it; days and months are those of UTC."""
    new = NewTopUp(
        threshold=threshold,
        package_id=package,
        payment_method=payment_method,
        day_cap=day_cap,
        month_cap=month_cap,
        declines_max=declines_max,
        account_id=account,
    )
    with open_target(data_dir) as target, target.transaction() as conn:
        business_id = business_of(conn, business)
        rule = set_top_up(conn, business_id, CustomerId(customer), currency, new)
    _print(rule, target, as_json=as_json)


@app.command("show")
def show(
    *,
    customer: Customer,
    currency: CurrencyCode,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show the rule of a wallet."""
    with open_target(data_dir) as target, target.transaction() as conn:
        rule = get_top_up(conn, business_of(conn, business), CustomerId(customer), currency)
    _print(rule, target, as_json=as_json)


@app.command("list")
def list_all(
    *,
    limit: Limit = 50,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the rules of a business, those of the newest wallets first."""
    with open_target(data_dir) as target, target.transaction() as conn:
        rules = page_of_top_ups(conn, business_of(conn, business), page=limit)
    if as_json:
        print_json(rules)
        return
    print_table(_COLUMNS, [_row(rule, target) for rule in rules], wide=wide)


@app.command("delete")
def delete(
    *,
    customer: Customer,
    currency: CurrencyCode,
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Take the rule of a wallet away."""
    with open_target(data_dir) as target, target.transaction() as conn:
        delete_top_up(conn, business_of(conn, business), CustomerId(customer), currency)
    typer.echo(f"the {currency} wallet of {customer} is not topped up any more")


@app.command("enable")
def enable(
    *,
    customer: Customer,
    currency: CurrencyCode,
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Switch the rule of a wallet on again, as if nothing had been declined."""
    with open_target(data_dir) as target, target.transaction() as conn:
        enable_top_up(conn, business_of(conn, business), CustomerId(customer), currency)
    typer.echo(f"the {currency} wallet of {customer} is topped up again")


_COLUMNS: Final = (
    *("customer_id", "at or below#", "buys", "in a day#", "in a month#", "off~"),
    *("declines", "not before", "under way"),
)


def _row(rule: TopUp, target: Target) -> tuple[object, ...]:
    decimals = target.settings.currencies
    return (
        rule.customer_id,
        money(rule.threshold_minor, rule.currency, decimals),
        rule.package_id,
        money(rule.day_cap_minor, rule.currency, decimals),
        money(rule.month_cap_minor, rule.currency, decimals),
        rule.disabled_reason,
        f"{rule.declines} of {rule.declines_max}",
        rule.retry_at,
        rule.pending_purchase_id,
    )


def _print(rule: TopUp, target: Target, *, as_json: bool) -> None:
    if as_json:
        print_json(rule)
    else:
        print_record(named(_COLUMNS, _row(rule, target)))
