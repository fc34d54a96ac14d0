"""`gullak package`: what is sold, and how much credit it is worth."""

from typing import Annotated

import typer
from typer import Argument, Option

from metering.ids import PackageId
from metering.purchase.packages import (
    NewPackage,
    Package,
    archive_package,
    create_package,
    page_of_packages,
)
from worker.cli.command import Options, Tenant, command
from worker.cli.options import Credit, CurrencyCode, Limit, Priority, ValidDays, minor
from worker.cli.page import Minor, field, table

app = typer.Typer(no_args_is_help=True)

_NEW = Options(
    name=Annotated[str, Option(help="Its name.")],
    currency=CurrencyCode,
    price=Annotated[int, minor("--price", "What it costs.")],
    credit=Credit,
    valid_days=ValidDays,
    priority=Priority,
)


@app.command("create")
@command(field("package_id"))
def create(tenant: Tenant, new: Annotated[NewPackage, _NEW]) -> Package:
    """Make a package and print its id."""
    return tenant.run(create_package, new, tenant.target.currencies)


@app.command("list")
@command(
    table(
        *("package_id", "name~", ("price#", Minor("price_minor"))),
        *(("credit#", Minor("credit_minor")), ("valid days#", "valid_days"), "archived_at"),
        "priority#",
    )
)
def list_all(
    tenant: Tenant,
    archived: Annotated[bool, Option("--archived", help="Only archived ones.")] = False,
    limit: Limit = 100,
) -> list[Package]:
    """List the packages of a business, newest first."""
    return tenant.run(page_of_packages, page=limit, is_archived=archived)


@app.command("archive")
@command()
def archive(
    tenant: Tenant, package: Annotated[PackageId, Argument(help="Package id.", metavar="PACKAGE")]
) -> str:
    """Stop selling a package; past purchases stay as they are."""
    tenant.run(archive_package, package)
    return f"{package} is sold no more"
