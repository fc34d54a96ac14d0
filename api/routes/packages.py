"""Packages: credit for sale, with its price, its amount and how long it is valid."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from pydantic import Field

from api.paging import Page, Paged
from api.parameters import PackagePath
from api.tenant import Reader, Writer
from api.views import View
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


class PackageOut(View):
    """A package. Amounts in minor units; `valid_days` null: its credit does not expire."""

    id: PackageId = Field(validation_alias="package_id")
    business_id: BusinessId
    name: str
    currency: Currency
    price: int = Field(validation_alias="price_minor")
    credit: int = Field(validation_alias="credit_minor")
    valid_days: int | None
    priority: int
    archived_at: datetime | None
    created_at: datetime


@router.post("", status_code=201, response_model=PackageOut)
def make_package(tenant: Writer, new: NewPackage) -> Package:
    """Create a package."""
    return tenant.run(create_package, new, tenant.context.currencies)


@router.get("", response_model=Page[PackageOut])
def list_packages(
    tenant: Reader, paged: Paged, *, archived: Annotated[bool, Query()] = False
) -> Page[Package]:
    """List the packages on sale, or the archived ones, newest first."""
    return Page(items=tenant.run(page_of_packages, is_archived=archived, **paged.rows(PackageId)))


@router.get("/{package_id}", response_model=PackageOut)
def show_package(tenant: Reader, package_id: PackagePath) -> Package:
    """Return one package, archived or not."""
    return tenant.run(get_package, package_id)


@router.delete("/{package_id}", status_code=204, response_class=Response)
def delete_package(tenant: Writer, package_id: PackagePath) -> None:
    """Archive a package: it is no longer sold, and purchases of it stay as they are."""
    tenant.run(archive_package, package_id)
