"""Customers: who pays. Making one opens its wallets at zero, one per currency."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy import Connection

from api.auth import Reader, Writer
from api.context import Scoped
from api.paging import Page, Paged
from api.routes.wallets import CustomerPath
from metering.clock import Moment
from metering.erasure import erase_customer
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

Part = Annotated[str, StringConstraints(max_length=255)]


class ErasureOut(BaseModel):
    """What was blanked by this call, and what waits for a decision and was kept."""

    model_config = ConfigDict(from_attributes=True)

    customer_id: CustomerId
    bodies_blanked: int
    refused_blanked: int
    bodies_waiting: int
    refused_waiting: int
    is_complete: bool


class CustomerOut(BaseModel):
    """A customer."""

    model_config = ConfigDict(from_attributes=True)

    customer_id: CustomerId
    business_id: BusinessId
    email: str
    name: str
    phone_number: str | None
    preferred_locale: str | None
    metadata: dict[str, bool | int | float | str]
    billing_currency: str | None
    created_at: datetime
    updated_at: datetime


def _out(customer: Customer) -> CustomerOut:
    return CustomerOut.model_validate(customer)


@router.post("")
def make_customer(caller: Writer, scope: Scoped, new: NewCustomer) -> CustomerOut:
    """Make a customer, with a wallet at zero in every currency."""

    def work(conn: Connection) -> Customer:
        customer_id = create_customer(conn, caller.business_id, new, scope.currencies)
        return get_customer(conn, caller.business_id, customer_id)

    return _out(scope.run(caller.business_id, work))


@router.get("")
def customers_page(
    *,
    caller: Reader,
    scope: Scoped,
    paged: Paged,
    email: Annotated[Part | None, Query(description="A part of it, in any case.")] = None,
    name: Annotated[Part | None, Query(description="A part of it, in any case.")] = None,
    created_at_gte: Moment | None = None,
    created_at_lte: Moment | None = None,
) -> Page[CustomerOut]:
    """List customers, newest first."""
    wanted = CustomerFilter(
        email=email, name=name, created_at_gte=created_at_gte, created_at_lte=created_at_lte
    )
    found = scope.run(
        caller.business_id,
        lambda conn: list_customers(
            conn,
            caller.business_id,
            wanted,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(CustomerId),
        ),
    )
    return Page(items=[_out(customer) for customer in found])


@router.get("/{customer_id}")
def show_customer(caller: Reader, scope: Scoped, customer_id: CustomerPath) -> CustomerOut:
    """Return one customer."""
    return _out(
        scope.run(
            caller.business_id, lambda conn: get_customer(conn, caller.business_id, customer_id)
        )
    )


@router.patch("/{customer_id}")
def change_customer(
    caller: Writer, scope: Scoped, customer_id: CustomerPath, change: CustomerChange
) -> CustomerOut:
    """Change the given fields of a customer; null removes one that may be missing."""
    return _out(
        scope.run(
            caller.business_id,
            lambda conn: update_customer(
                conn, caller.business_id, customer_id, change, scope.currencies
            ),
        )
    )


@router.delete("/{customer_id}/personal-data")
def erase_personal_data(caller: Writer, scope: Scoped, customer_id: CustomerPath) -> ErasureOut:
    """Erase the personal data of a customer; entries and balances stay. Twice is once."""
    erased = scope.run(
        caller.business_id, lambda conn: erase_customer(conn, caller.business_id, customer_id)
    )
    return ErasureOut.model_validate(erased)
