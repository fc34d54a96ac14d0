"""Customers of a business: read, changed, listed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Row

from metering.db import row
from metering.errors import NotFoundError, UnsupportedCurrencyError
from metering.fields import Locale, Metadata, MetadataValue, NonEmpty255
from metering.ids import BusinessId, CustomerId
from metering.ledger import statements


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """A customer as stored."""

    customer_id: CustomerId
    business_id: BusinessId
    email: str
    name: str
    phone_number: str | None
    preferred_locale: str | None
    metadata: dict[str, MetadataValue]
    billing_currency: str | None
    created_at: datetime
    updated_at: datetime


class CustomerChange(BaseModel):
    """What is to change; what is left out stays. Null removes what a customer may lack."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    email: NonEmpty255 | None = None
    name: NonEmpty255 | None = None
    phone_number: NonEmpty255 | None = None
    preferred_locale: Locale | None = None
    metadata: Metadata | None = None
    billing_currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerFilter:
    """Which customers: parts of email and name in any case, and when they were made."""

    email: str | None = None
    name: str | None = None
    created_at_gte: datetime | None = None
    created_at_lte: datetime | None = None


def get_customer(conn: Connection, business_id: BusinessId, customer_id: CustomerId) -> Customer:
    """Return a customer.

    Raises:
        NotFoundError: the business has no such customer.

    """
    values = {"business_id": business_id, "customer_id": customer_id}
    row = None if "\0" in customer_id else conn.execute(statements.CUSTOMER, values).one_or_none()
    if row is None:
        raise NotFoundError("customer", customer_id)
    return _customer(row)


def update_customer(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    change: CustomerChange,
    currencies: tuple[str, ...],
) -> Customer:
    """Change a customer; return it as it is then.

    Raises:
        NotFoundError: the business has no such customer.
        UnsupportedCurrencyError: the billing currency is not configured.

    """
    billing = change.billing_currency
    if billing is not None and billing not in currencies:
        raise UnsupportedCurrencyError(billing, currencies)
    # Locked, so that of two changes at once neither writes back what the other changed.
    conn.execute(statements.LOCK_CUSTOMER, {"business_id": business_id, "customer_id": customer_id})
    before = get_customer(conn, business_id, customer_id)
    given = change.model_fields_set
    metadata = before.metadata if change.metadata is None else change.metadata
    values = {
        "business_id": business_id,
        "customer_id": customer_id,
        "email": change.email or before.email,
        "name": change.name or before.name,
        "phone_number": change.phone_number if "phone_number" in given else before.phone_number,
        "preferred_locale": (
            change.preferred_locale if "preferred_locale" in given else before.preferred_locale
        ),
        "metadata": orjson.dumps(metadata).decode(),
    }
    conn.execute(statements.UPDATE_CUSTOMER, values)
    if "billing_currency" in given and billing != before.billing_currency:
        conn.execute(statements.SET_BILLING_CURRENCY, {**values, "billing_currency": billing})
    return get_customer(conn, business_id, customer_id)


def list_customers(
    conn: Connection,
    business_id: BusinessId,
    wanted: CustomerFilter,
    *,
    page: int,
    offset: int = 0,
    after: CustomerId | None = None,
) -> list[Customer]:
    """Return up to `page` customers, newest first; those older than `after`, if it is given.

    Raises:
        NotFoundError: the business has no customer `after`.

    """
    last = None if after is None else get_customer(conn, business_id, after)
    if "\0" in f"{wanted.email}{wanted.name}":
        return []
    rows = conn.execute(
        statements.CUSTOMER_PAGE,
        {
            "business_id": business_id,
            "email": _part(wanted.email),
            "name": _part(wanted.name),
            "created_at_gte": wanted.created_at_gte,
            "created_at_lte": wanted.created_at_lte,
            "after_at": None if last is None else last.created_at,
            "after_id": None if last is None else last.customer_id,
            "page": page,
            "offset": offset,
        },
    )
    return [_customer(row) for row in rows]


def _part(text: str | None) -> str | None:
    """Return a pattern for ILIKE that matches `text` itself, anywhere."""
    if text is None:
        return None
    literal = text.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
    return f"%{literal}%"


def _customer(found: Row[Any]) -> Customer:
    return row(Customer, found)
