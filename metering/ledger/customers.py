"""Customers of a business."""

from dataclasses import asdict, dataclass
from datetime import datetime

import orjson
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from metering.db import get_one, rows
from metering.errors import NotFoundError, UnsupportedCurrencyError
from metering.fields import Locale, Metadata, MetadataValue, NonEmpty255
from metering.ids import BusinessId, CustomerId, new_id
from metering.ledger import statements
from metering.ledger.wallets import open_wallets


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


class NewCustomer(BaseModel):
    """A customer to create. `billing_currency` chooses the price list."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    email: NonEmpty255
    name: NonEmpty255
    phone_number: NonEmpty255 | None = None
    preferred_locale: Locale | None = None
    metadata: Metadata = {}
    billing_currency: str | None = None


class CustomerChange(BaseModel):
    """The fields to change; the others stay. Null removes a field that a customer may lack."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    email: NonEmpty255 | None = None
    name: NonEmpty255 | None = None
    phone_number: NonEmpty255 | None = None
    preferred_locale: Locale | None = None
    metadata: Metadata | None = None
    billing_currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerFilter:
    """Parts of email and name in any case, and bounds of the time of creation."""

    email: str | None = None
    name: str | None = None
    created_at_gte: datetime | None = None
    created_at_lte: datetime | None = None


def create_customer(
    conn: Connection, business_id: BusinessId, new: NewCustomer, currencies: tuple[str, ...]
) -> CustomerId:
    """Create a customer with a wallet at zero for every currency.

    Raises: UnsupportedCurrencyError if the billing currency is not configured.
    """
    _check_billing(new.billing_currency, currencies)
    customer_id = CustomerId(new_id("cus"))
    values = new.model_dump() | {"metadata": orjson.dumps(new.metadata).decode()}
    values |= {"customer_id": customer_id, "business_id": business_id}
    conn.execute(statements.INSERT_CUSTOMER, values)
    open_wallets(conn, [(business_id, customer_id, currency) for currency in currencies])
    return customer_id


def _check_billing(currency: str | None, currencies: tuple[str, ...]) -> None:
    if currency is not None and currency not in currencies:
        raise UnsupportedCurrencyError(currency, currencies, "billing_currency")


def get_customer(conn: Connection, business_id: BusinessId, customer_id: CustomerId) -> Customer:
    """Return a customer. Raises: NotFoundError if the business has no such customer."""
    if "\0" in customer_id:
        raise NotFoundError("customer", customer_id)
    values = {"business_id": business_id, "customer_id": customer_id}
    return get_one(Customer, conn.execute(statements.CUSTOMER, values), "customer", customer_id)


def update_customer(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    change: CustomerChange,
    currencies: tuple[str, ...],
) -> Customer:
    """Change a customer; return it.

    Raises: NotFoundError if the business has no such customer. UnsupportedCurrencyError if the
    billing currency is not configured.
    """
    _check_billing(change.billing_currency, currencies)
    # Locked, so that of two changes at once neither writes back an old value of the other's field.
    conn.execute(statements.LOCK_CUSTOMER, {"business_id": business_id, "customer_id": customer_id})
    before = get_customer(conn, business_id, customer_id)
    given = change.model_dump(exclude_unset=True)
    # These cannot be removed, so null leaves them as they are.
    for required in ("email", "name", "metadata"):
        if given.get(required) is None:
            given.pop(required, None)
    values = {**asdict(before), **given}
    values["metadata"] = orjson.dumps(values["metadata"]).decode()
    conn.execute(statements.UPDATE_CUSTOMER, values)
    if values["billing_currency"] != before.billing_currency:
        conn.execute(statements.SET_BILLING_CURRENCY, values)
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
    """Return up to `page` customers, newest first, past `offset` of them or older than `after`.

    Raises: NotFoundError if the business has no customer `after`.
    """
    last = None if after is None else get_customer(conn, business_id, after)
    if "\0" in f"{wanted.email}{wanted.name}":
        return []
    values = {
        **asdict(wanted),
        "business_id": business_id,
        "email": _ilike_pattern(wanted.email),
        "name": _ilike_pattern(wanted.name),
        "after_at": None if last is None else last.created_at,
        "after_id": None if last is None else last.customer_id,
        "page": page,
        "offset": offset,
    }
    return rows(Customer, conn.execute(statements.CUSTOMER_PAGE, values))


def _ilike_pattern(part: str | None) -> str | None:
    """Return a pattern that matches the text itself, anywhere."""
    if part is None:
        return None
    literal = part.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
    return f"%{literal}%"
