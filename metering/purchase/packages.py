"""Packages: a price, and the credit that it buys for some time."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from metering.db import get_one, row, rows
from metering.errors import NotFoundError, UnsupportedCurrencyError
from metering.fields import CurrencyCode, Filled255, PositiveMinor
from metering.ids import BusinessId, Currency, PackageId, new_id
from metering.ledger.entry import PRIORITY_DEFAULT, Priority
from metering.purchase import statements

Days = Annotated[int, Field(strict=True, gt=0, le=36_500)]


class NewPackage(BaseModel):
    """A package to sell. `credit`: the credit, if not the price (a bonus, tax).

    `valid_days`: after how many days the credit expires, if ever. `priority`: a lower one is used
    first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Filled255
    currency: CurrencyCode
    price: PositiveMinor
    credit: PositiveMinor | None = None
    valid_days: Days | None = None
    priority: Priority = PRIORITY_DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package as stored; amounts in minor units."""

    package_id: PackageId
    business_id: BusinessId
    name: str
    currency: Currency
    price_minor: int
    credit_minor: int
    valid_days: int | None
    priority: int
    archived_at: datetime | None
    created_at: datetime


def create_package(
    conn: Connection, business_id: BusinessId, new: NewPackage, currencies: tuple[str, ...]
) -> Package:
    """Make a package. Raises: UnsupportedCurrencyError if its currency is not configured."""
    if new.currency not in currencies:
        raise UnsupportedCurrencyError(new.currency, currencies)
    values = {
        "package_id": new_id("pkg"),
        "business_id": business_id,
        "name": new.name,
        "currency": new.currency,
        "price_minor": new.price,
        "credit_minor": new.price if new.credit is None else new.credit,
        "valid_days": new.valid_days,
        "priority": new.priority,
    }
    return row(Package, conn.execute(statements.INSERT_PACKAGE, values).one())


def get_package(conn: Connection, business_id: BusinessId, package_id: PackageId) -> Package:
    """Return a package, even an archived one. Raises: NotFoundError if there is none."""
    values = {"business_id": business_id, "package_id": package_id}
    return get_one(Package, conn.execute(statements.PACKAGE, values), "package", package_id)


def archive_package(conn: Connection, business_id: BusinessId, package_id: PackageId) -> None:
    """Take a package off sale; its purchases stay as they are.

    Raises: NotFoundError if the business has no such package.
    """
    values = {"business_id": business_id, "package_id": package_id}
    if not conn.execute(statements.ARCHIVE_PACKAGE, values).rowcount:
        raise NotFoundError("package", package_id)


def page_of_packages(
    conn: Connection,
    business_id: BusinessId,
    *,
    page: int,
    offset: int = 0,
    after: PackageId | None = None,
    is_archived: bool = False,
) -> list[Package]:
    """Return up to `page` packages of a business, newest first, older than `after`."""
    values = {"business_id": business_id, "page": page, "offset": offset, "after": after}
    wanted = {"is_archived": is_archived}
    return rows(Package, conn.execute(statements.PACKAGE_PAGE, {**values, **wanted}))
