"""Businesses, customers and their wallets."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
)
from sqlalchemy import Connection

from metering.errors import FieldProblem, InvalidInputError, NotFoundError, UnsupportedCurrencyError
from metering.fields import Locale, Metadata, NonEmpty255
from metering.ids import BusinessId, Currency, CustomerId, WalletId, new_id
from metering.ledger import statements
from metering.ledger.entry import Wallet

NAME_LENGTH_MAX: Final = 255
MISSING_WALLETS_PAGE: Final = 10_000


class NewCustomer(BaseModel):
    """What a customer is made of. `billing_currency`: which price list applies to it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    email: NonEmpty255
    name: NonEmpty255
    phone_number: NonEmpty255 | None = None
    preferred_locale: Locale | None = None
    metadata: Metadata = {}
    billing_currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletView:
    """A wallet as it was when it was read.

    `spendable_minor`: what credit covers now: the balance without what is frozen or has expired;
    below zero it is debt.
    """

    wallet: Wallet
    created_at: datetime
    updated_at: datetime
    spendable_minor: int

    @property
    def available_minor(self) -> int:
        """Return what a debit may take: what credit covers, and how far it may be overdrawn."""
        return self.spendable_minor + self.wallet.overdraft_limit_minor


class Payer(NamedTuple):
    """Whom a batch charges: a customer's business, billing currency and wallet per currency."""

    business_id: BusinessId
    billing_currency: Currency | None
    wallets: dict[Currency, WalletId]


def create_business(conn: Connection, name: str) -> BusinessId:
    """Make a business; return its id.

    Raises:
        InvalidInputError: the name is blank or too long.

    """
    if not 0 < len(name.strip()) <= NAME_LENGTH_MAX:
        raise InvalidInputError(
            FieldProblem("name", f"must have 1 to {NAME_LENGTH_MAX} characters")
        )
    business_id = BusinessId(new_id("bus"))
    conn.execute(statements.INSERT_BUSINESS, {"business_id": business_id, "name": name.strip()})
    return business_id


def create_customer(
    conn: Connection, business_id: BusinessId, new: NewCustomer, currencies: tuple[str, ...]
) -> CustomerId:
    """Make a customer and, in the same transaction, a wallet at zero for every currency.

    Raises:
        UnsupportedCurrencyError: the billing currency is not configured.

    """
    if new.billing_currency is not None and new.billing_currency not in currencies:
        raise UnsupportedCurrencyError(new.billing_currency, currencies)
    customer_id = CustomerId(new_id("cus"))
    values = new.model_dump(exclude={"metadata"})
    conn.execute(
        statements.INSERT_CUSTOMER,
        {
            **values,
            "customer_id": customer_id,
            "business_id": business_id,
            "metadata": orjson.dumps(new.metadata).decode(),
        },
    )
    _open_wallets(conn, [(business_id, customer_id, currency) for currency in currencies])
    return customer_id


def _open_wallets(conn: Connection, wanted: list[tuple[str, str, str]]) -> None:
    if not wanted:
        return
    conn.execute(
        statements.INSERT_WALLET,
        [
            {
                "wallet_id": new_id("wal"),
                "business_id": business_id,
                "customer_id": customer_id,
                "currency": currency,
            }
            for business_id, customer_id, currency in wanted
        ],
    )


def open_missing_wallets(conn: Connection, currencies: tuple[str, ...]) -> int:
    """Open the wallets that a newly configured currency lacks; return how many."""
    opened = 0
    for currency in currencies:
        while rows := conn.execute(
            statements.CUSTOMERS_WITHOUT_WALLET,
            {"currency": currency, "page": MISSING_WALLETS_PAGE},
        ).all():
            _open_wallets(conn, [(row.business_id, row.customer_id, currency) for row in rows])
            opened += len(rows)
    if opened:
        conn.execute(statements.MOVE_ALL_RATE_CARDS)
    return opened


def wallets_of(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId
) -> dict[Currency, WalletView]:
    """Return a customer's wallets by currency.

    Raises:
        NotFoundError: the business has no such customer.

    """
    if "\0" in customer_id:
        raise NotFoundError("customer", customer_id)
    rows = conn.execute(
        statements.WALLETS_OF_CUSTOMER, {"business_id": business_id, "customer_id": customer_id}
    ).all()
    if not rows:
        raise NotFoundError("customer", customer_id)
    found = {}
    for row in rows:
        values = dict(row._mapping)  # noqa: SLF001
        about = {name: values.pop(name) for name in ("created_at", "updated_at", "spendable_minor")}
        found[Currency(row.currency)] = WalletView(wallet=Wallet(**values), **about)
    return found


def wallet_of(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId, currency: str
) -> Wallet:
    """Return a customer's wallet in one currency.

    Raises:
        NotFoundError: the business has no such customer.
        UnsupportedCurrencyError: the customer has no wallet in it.

    """
    wallets = wallets_of(conn, business_id, customer_id)
    view = wallets.get(Currency(currency))
    if view is None:
        raise UnsupportedCurrencyError(currency, tuple(wallets))
    return view.wallet


def payers(conn: Connection, customer_ids: set[CustomerId]) -> dict[CustomerId, Payer]:
    """Return those of the customers that exist, with their wallets."""
    found: dict[CustomerId, Payer] = {}
    for row in conn.execute(statements.CHARGEABLE, {"customer_ids": sorted(customer_ids)}):
        customer_id, business_id, billing, wallet_id, currency = row
        payer = found.get(customer_id)
        if payer is None:
            payer = found[customer_id] = Payer(business_id, billing, {})
        if wallet_id is not None:
            payer.wallets[currency] = wallet_id
    return found
