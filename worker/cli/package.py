"""`gullak package`: what is sold, and how much credit it is worth."""

from typing import Annotated

import typer

from metering.ids import PackageId
from metering.ledger.entry import PRIORITY_DEFAULT
from metering.purchase.packages import (
    NewPackage,
    Package,
    archive_package,
    create_package,
    page_of_packages,
)
from worker.cli.options import (
    AsJson,
    Business,
    CurrencyCode,
    Limit,
    Priority,
    ValidDays,
    Wide,
    minor,
)
from worker.cli.show import money, print_json, print_table
from worker.cli.target import DataDir, Target, business_of, open_target

app = typer.Typer(help="What is sold, and how much credit it is worth.", no_args_is_help=True)


@app.command("create")
def create(
    *,
    name: Annotated[str, typer.Option(help="Its name.")],
    currency: CurrencyCode,
    price: Annotated[int, minor("--price", "What it costs.")],
    credit: Annotated[
        int | None, minor("--credit", "What it is worth. Default: the price.")
    ] = None,
    valid_days: ValidDays = None,
    priority: Priority = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make a package and print its id."""
    new = NewPackage(
        name=name,
        currency=currency,
        price=price,
        credit=credit,
        valid_days=valid_days,
        priority=PRIORITY_DEFAULT if priority is None else priority,
    )
    with open_target(data_dir) as target, target.transaction() as conn:
        package = create_package(conn, business_of(conn, business), new, target.currencies)
    if as_json:
        print_json(package)
    else:
        typer.echo(package.package_id)


@app.command("list")
def list_all(
    *,
    archived: Annotated[bool, typer.Option("--archived", help="Those sold no more.")] = False,
    limit: Limit = 100,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the packages of a business, newest first."""
    with open_target(data_dir) as target, target.transaction() as conn:
        packages = page_of_packages(
            conn, business_of(conn, business), page=limit, is_archived=archived
        )
    if as_json:
        print_json(packages)
        return
    columns = (
        "package_id",
        "name~",
        "price#",
        "credit#",
        "valid days#",
        "archived_at",
        "priority#",
    )
    print_table(columns, [_row(package, target) for package in packages], wide=wide)


def _row(package: Package, target: Target) -> tuple[object, ...]:
    decimals = target.settings.currencies
    return (
        package.package_id,
        package.name,
        money(package.price_minor, package.currency, decimals),
        money(package.credit_minor, package.currency, decimals),
        package.valid_days,
        package.archived_at,
        package.priority,
    )


@app.command("archive")
def archive(
    *,
    package: Annotated[str, typer.Argument(help="Package id.", metavar="PACKAGE")],
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Sell a package no more; what was bought stays as it is."""
    with open_target(data_dir) as target, target.transaction() as conn:
        archive_package(conn, business_of(conn, business), PackageId(package))
    typer.echo(f"{package} is sold no more")
