"""Customers: who pays. A new customer gets a wallet at zero in each currency."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import StringConstraints
from sqlalchemy import Connection

from api.paging import Page, Paged
from api.parameters import CustomerPath
from api.tenant import Reader, Writer
from api.views import Metadata, View
from metering.clock import Moment
from metering.erasure import Erasure, erase_customer
from metering.ids import BusinessId, CustomerId
from metering.ledger.customers import (
    Customer,
    CustomerChange,
    CustomerFilter,
    NewCustomer,
    create_customer,
    get_customer,
    list_customers,
    update_customer,
)

router: Final = APIRouter(prefix="/customers", tags=["customers"])

Part = Annotated[
    Annotated[str, StringConstraints(max_length=255)] | None,
    Query(description="A part of it, in any case."),
]


class ErasureOut(View):
    """What this call erased, and what it kept because a decision on it is open."""

    customer_id: CustomerId
    bodies_blanked: int
    refused_blanked: int
    bodies_waiting: int
    refused_waiting: int
    is_complete: bool


class CustomerOut(View):
    """A customer."""

    customer_id: CustomerId
    business_id: BusinessId
    email: str
    name: str
    phone_number: str | None
    preferred_locale: str | None
    metadata: Metadata
    billing_currency: str | None
    created_at: datetime
    updated_at: datetime


@router.post("", response_model=CustomerOut)
def make_customer(tenant: Writer, new: NewCustomer) -> Customer:
    """Create a customer, with a wallet at zero in every currency."""

    def work(conn: Connection, business_id: BusinessId) -> Customer:
        customer_id = create_customer(conn, business_id, new, tenant.context.currencies)
        return get_customer(conn, business_id, customer_id)

    return tenant.run(work)


@router.get("", response_model=Page[CustomerOut])
def customers_page(
    *,
    tenant: Reader,
    paged: Paged,
    email: Part = None,
    name: Part = None,
    created_at_gte: Moment | None = None,
    created_at_lte: Moment | None = None,
) -> Page[Customer]:
    """List customers, newest first."""
    wanted = CustomerFilter(
        email=email, name=name, created_at_gte=created_at_gte, created_at_lte=created_at_lte
    )
    return Page(items=tenant.run(list_customers, wanted, **paged.rows(CustomerId)))


@router.get("/{customer_id}", response_model=CustomerOut)
def show_customer(tenant: Reader, customer_id: CustomerPath) -> Customer:
    """Return one customer."""
    return tenant.run(get_customer, customer_id)


@router.patch("/{customer_id}", response_model=CustomerOut)
def change_customer(tenant: Writer, customer_id: CustomerPath, change: CustomerChange) -> Customer:
    """Change the given fields of a customer; null clears an optional one."""
    return tenant.run(update_customer, customer_id, change, tenant.context.currencies)


@router.delete("/{customer_id}/personal-data", response_model=ErasureOut)
def erase_personal_data(tenant: Writer, customer_id: CustomerPath) -> Erasure:
    """Erase the personal data of a customer; entries and balances stay. It may be repeated."""
    return tenant.run(erase_customer, customer_id)
