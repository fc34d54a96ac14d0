"""Wallets of customers: one for each currency. Only `ledger.post` changes a balance."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from metering.errors import NotFoundError, UnsupportedCurrencyError
from metering.ids import BusinessId, Currency, CustomerId, WalletId, new_id
from metering.ledger import statements
from metering.ledger.entry import Wallet

MISSING_WALLETS_PAGE: Final = 10_000
# Far below 64 bits, so that the sum of a balance and its limit fits.
OVERDRAFT_MAX: Final = 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletView:
    """A wallet as it was when it was read.

    `spendable_minor` is what credit covers now: the balance without frozen and expired credit.
    Below zero it is debt.
    """

    wallet: Wallet
    created_at: datetime
    updated_at: datetime
    spendable_minor: int

    @property
    def available_minor(self) -> int:
        """Return what a debit may take: what credit covers, and the overdraft."""
        return self.spendable_minor + self.wallet.overdraft_limit_minor


class Payer(NamedTuple):
    """A customer that a batch debits: business, billing currency, and the wallet per currency."""

    business_id: BusinessId
    billing_currency: Currency | None
    wallets: dict[Currency, WalletId]


class Overdraft(BaseModel):
    """How far below zero debits that are not usage may take a wallet, in minor units.

    Usage has happened and is always debited. The limit is no credit, so alerts and top-ups ignore
    it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(strict=True, ge=0, le=OVERDRAFT_MAX)]


def open_wallets(conn: Connection, wanted: list[tuple[str, str, str]]) -> None:
    """Open wallets at zero, each of a business, a customer and a currency."""
    names = ("business_id", "customer_id", "currency")
    rows = [{"wallet_id": new_id("wal"), **dict(zip(names, each, strict=True))} for each in wanted]
    if rows:
        conn.execute(statements.INSERT_WALLET, rows)


def open_missing_wallets(conn: Connection, currencies: tuple[str, ...]) -> int:
    """Open the wallets that a newly configured currency lacks; return their number."""
    opened = 0
    for currency in currencies:
        while rows := conn.execute(
            statements.CUSTOMERS_WITHOUT_WALLET,
            {"currency": currency, "page": MISSING_WALLETS_PAGE},
        ).all():
            open_wallets(conn, [(row.business_id, row.customer_id, currency) for row in rows])
            opened += len(rows)
    if opened:
        conn.execute(statements.MOVE_ALL_RATE_CARDS)
    return opened


def wallets_of(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId
) -> dict[Currency, WalletView]:
    """Return a customer's wallets by currency.

    Raises: NotFoundError if the business has no such customer.
    """
    values = {"business_id": business_id, "customer_id": customer_id}
    rows = [] if "\0" in customer_id else conn.execute(statements.WALLETS_OF_CUSTOMER, values).all()
    if not rows:
        raise NotFoundError("customer", customer_id)
    wallet_columns = len(Wallet._fields)
    return {
        Currency(row.currency): WalletView(
            wallet=Wallet._make(row[:wallet_columns]),
            created_at=row.created_at,
            updated_at=row.updated_at,
            spendable_minor=row.spendable_minor,
        )
        for row in rows
    }


def wallet_of(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId, currency: str
) -> Wallet:
    """Return a customer's wallet in one currency.

    Raises: NotFoundError if the business has no such customer. UnsupportedCurrencyError if the
    customer has no wallet in the currency.
    """
    wallets = wallets_of(conn, business_id, customer_id)
    view = wallets.get(Currency(currency))
    if view is None:
        raise UnsupportedCurrencyError(currency, tuple(wallets))
    return view.wallet


def set_overdraft(
    conn: Connection,
    business_id: BusinessId,
    customer_id: CustomerId,
    currency: str,
    new: Overdraft,
) -> None:
    """Set the overdraft of a wallet. A smaller limit does not change the debt that is there.

    Raises: NotFoundError or UnsupportedCurrencyError if there is no such wallet.
    """
    wallet_id = wallet_of(conn, business_id, customer_id, currency).wallet_id
    conn.execute(statements.SET_OVERDRAFT, {"wallet_id": wallet_id, "limit_minor": new.limit})


def payers(conn: Connection, customer_ids: set[CustomerId]) -> dict[CustomerId, Payer]:
    """Return those of the customers that exist, with their wallets."""
    found: dict[CustomerId, Payer] = {}
    for row in conn.execute(statements.CHARGEABLE, {"customer_ids": sorted(customer_ids)}):
        customer_id, business_id, billing, wallet_id, currency = row
        payer = found.setdefault(customer_id, Payer(business_id, billing, {}))
        if wallet_id is not None:
            payer.wallets[currency] = wallet_id
    return found
