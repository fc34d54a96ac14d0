"""`gullak package`: what is sold, and how much credit it is worth."""

from typing import Annotated

from typer import Argument, Option

from metering.ids import PackageId
from metering.purchase.packages import (
    NewPackage,
    Package,
    archive_package,
    create_package,
    get_package,
    page_of_packages,
)
from worker.cli.command import Group, Options, Tenant
from worker.cli.options import Credit, CurrencyCode, Limit, Priority, ValidDays, minor
from worker.cli.page import Sentence, field, table

app = Group()

_NEW = Options(
    name=Annotated[str, Option(help="Its name.")],
    currency=CurrencyCode,
    price=Annotated[int, minor("--price", "What it costs.")],
    credit=Credit,
    valid_days=ValidDays,
    priority=Priority,
)


@app.add("create", field("package_id"))
def create(tenant: Tenant, new: Annotated[NewPackage, _NEW]) -> Package:
    """Make a package and print its id."""
    return tenant.run(create_package, new, tenant.target.currencies)


@app.add(
    "list",
    table(
        """
            package_id, name~, price# = $price_minor, credit# = $credit_minor,
            valid days# = valid_days, archived_at, priority#
        """,
    ),
)
def list_all(
    tenant: Tenant,
    archived: Annotated[bool, Option("--archived", help="Only archived ones.")] = False,
    limit: Limit = 100,
) -> list[Package]:
    """List the packages of a business, newest first."""
    return tenant.run(page_of_packages, page=limit, is_archived=archived)


@app.add("archive")
def archive(
    tenant: Tenant, package: Annotated[PackageId, Argument(help="Package id.", metavar="PACKAGE")]
) -> Sentence:
    """Stop selling a package; past purchases stay as they are."""
    tenant.run(archive_package, package)
    return Sentence(tenant.run(get_package, package), f"{package} is sold no more")
