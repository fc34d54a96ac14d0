"""Packages: credit as it is sold, with its price, its worth and for how long it counts."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel

from api.auth import Reader, Writer
from api.context import Scoped
from api.paging import Page, Paged
from metering.ids import BusinessId, Currency, PackageId
from metering.purchase.packages import (
    NewPackage,
    Package,
    archive_package,
    create_package,
    get_package,
    page_of_packages,
)

router: Final = APIRouter(prefix="/packages", tags=["packages"])

PackagePath = Annotated[PackageId, Path(min_length=1, max_length=64)]


class PackageOut(BaseModel):
    """A package. Amounts in minor units; `valid_days` null: its credit counts for ever."""

    id: PackageId
    business_id: BusinessId
    name: str
    currency: Currency
    price: int
    credit: int
    valid_days: int | None
    priority: int
    archived_at: datetime | None
    created_at: datetime


def _out(package: Package) -> PackageOut:
    return PackageOut(
        id=package.package_id,
        business_id=package.business_id,
        name=package.name,
        currency=package.currency,
        price=package.price_minor,
        credit=package.credit_minor,
        valid_days=package.valid_days,
        priority=package.priority,
        archived_at=package.archived_at,
        created_at=package.created_at,
    )


@router.post("", status_code=201)
def make_package(caller: Writer, scope: Scoped, new: NewPackage) -> PackageOut:
    """Make a package."""
    return _out(
        scope.run(
            caller.business_id,
            lambda conn: create_package(conn, caller.business_id, new, scope.currencies),
        )
    )


@router.get("")
def list_packages(
    caller: Reader, scope: Scoped, paged: Paged, *, archived: Annotated[bool, Query()] = False
) -> Page[PackageOut]:
    """List the packages on sale, or the archived ones, newest first."""
    found = scope.run(
        caller.business_id,
        lambda conn: page_of_packages(
            conn,
            caller.business_id,
            is_archived=archived,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(PackageId),
        ),
    )
    return Page(items=[_out(package) for package in found])


@router.get("/{package_id}")
def show_package(caller: Reader, scope: Scoped, package_id: PackagePath) -> PackageOut:
    """Return one package, archived or not."""
    return _out(
        scope.run(
            caller.business_id, lambda conn: get_package(conn, caller.business_id, package_id)
        )
    )


@router.delete("/{package_id}", status_code=204, response_class=Response)
def delete_package(caller: Writer, scope: Scoped, package_id: PackagePath) -> None:
    """Archive a package: it is sold no more, and what was bought stays as it is."""
    scope.run(
        caller.business_id, lambda conn: archive_package(conn, caller.business_id, package_id)
    )
