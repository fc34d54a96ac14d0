"""The wallets of a customer: one per currency, each balance apart."""

from collections.abc import Mapping
from datetime import date, datetime
from decimal import ROUND_FLOOR, Decimal, localcontext
from typing import Annotated, Final

from fastapi import APIRouter, Path
from pydantic import BaseModel
from sqlalchemy import Connection

from api.auth import Reader, Writer
from api.context import ApiScope, Scoped
from metering.ids import Currency, CustomerId
from metering.ledger.wallets import Overdraft, WalletView, set_overdraft, wallets_of
from metering.money import plain

router: Final = APIRouter(prefix="/customers/{customer_id}/wallets", tags=["wallets"])

CustomerPath = Annotated[CustomerId, Path(min_length=1, max_length=64)]
CurrencyPath = Annotated[Currency, Path(min_length=1, max_length=10)]


class CustomerWallet(BaseModel):
    """A wallet. All amounts in minor units; `remainder`: what is below one, as a decimal text."""

    customer_id: CustomerId
    currency: Currency
    balance: int
    # What may be spent now: the balance without what is frozen or has just expired, and how far
    # below zero a debit may go. Alerts and top-ups look at the same without the last.
    available_balance: int
    # How far below zero a debit that is not usage may go. Usage is always debited.
    overdraft_limit: int
    # In lots whose payment is in dispute.
    frozen: int
    remainder: str
    created_at: datetime
    updated_at: datetime


class CustomerWallets(BaseModel):
    """All wallets, and their sum by the configured rates; without a rate a currency is left out."""

    items: list[CustomerWallet]
    total_balance_usd: int
    rates_as_of: date | None


@router.get("")
def list_wallets(caller: Reader, scope: Scoped, customer_id: CustomerPath) -> CustomerWallets:
    """Return every wallet of a customer, those at zero too."""
    found = scope.run(
        caller.business_id, lambda conn: wallets_of(conn, caller.business_id, customer_id)
    )
    wallets = [wallet_of_view(found[code]) for code in configured(scope, found)]
    return CustomerWallets(
        items=wallets,
        total_balance_usd=total_usd(wallets, scope.settings.usd_rates),
        rates_as_of=scope.settings.usd_rates_date,
    )


@router.put("/{currency}/overdraft")
def put_overdraft(
    caller: Writer,
    scope: Scoped,
    customer_id: CustomerPath,
    currency: CurrencyPath,
    new: Overdraft,
) -> CustomerWallet:
    """Say how far below zero a debit that is not usage may go; what is owed already stays owed."""

    def work(conn: Connection) -> WalletView:
        set_overdraft(conn, caller.business_id, customer_id, currency, new)
        return wallets_of(conn, caller.business_id, customer_id)[currency]

    return wallet_of_view(scope.run(caller.business_id, work))


def configured(scope: ApiScope, found: Mapping[Currency, WalletView]) -> list[Currency]:
    """Return the currencies of wallets, the configured ones first and in their order."""
    order = {code: number for number, code in enumerate(scope.currencies)}
    return sorted(found, key=lambda code: (order.get(code, len(order)), code))


def wallet_of_view(view: WalletView) -> CustomerWallet:
    """Return a wallet as the contract writes it."""
    wallet = view.wallet
    return CustomerWallet(
        customer_id=wallet.customer_id,
        currency=wallet.currency,
        balance=wallet.balance_minor,
        available_balance=view.available_minor,
        overdraft_limit=wallet.overdraft_limit_minor,
        frozen=wallet.frozen_minor,
        remainder=plain(wallet.remainder),
        created_at=view.created_at,
        updated_at=view.updated_at,
    )


def total_usd(wallets: list[CustomerWallet], rates: Mapping[str, Decimal]) -> int:
    """Return the sum in cents of USD, rounded down."""
    with localcontext(prec=60):
        known = {"USD": Decimal(1), **rates}
        total = sum(
            (
                wallet.balance * known[wallet.currency]
                for wallet in wallets
                if wallet.currency in known
            ),
            Decimal(0),
        )
        return int(total.to_integral_value(ROUND_FLOOR))
