"""The wallets of a customer: one per currency, each with its own balance."""

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import ROUND_FLOOR, Decimal, localcontext
from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import Connection

from api.parameters import CurrencyPath, CustomerPath
from api.tenant import Reader, Writer
from api.views import CustomerWallet
from metering.ids import BusinessId, Currency
from metering.ledger.wallets import Overdraft, WalletView, set_overdraft, wallets_of

router: Final = APIRouter(prefix="/customers/{customer_id}/wallets", tags=["wallets"])


class CustomerWallets(BaseModel):
    """All wallets, and their sum by the configured rates, without currencies that have no rate."""

    items: list[CustomerWallet]
    total_balance_usd: int
    rates_as_of: date | None


@router.get("")
def list_wallets(tenant: Reader, customer_id: CustomerPath) -> CustomerWallets:
    """Return every wallet of a customer, those at zero too."""
    found = tenant.run(wallets_of, customer_id)
    settings = tenant.context.settings
    wallets = [
        CustomerWallet.model_validate(found[code])
        for code in configured_first(found, tenant.context.currencies)
    ]
    return CustomerWallets(
        items=wallets,
        total_balance_usd=total_usd(wallets, settings.usd_rates),
        rates_as_of=settings.usd_rates_date,
    )


@router.put("/{currency}/overdraft", response_model=CustomerWallet)
def put_overdraft(
    tenant: Writer, customer_id: CustomerPath, currency: CurrencyPath, new: Overdraft
) -> WalletView:
    """Set how far below zero a debit that is not usage may go; existing debt does not change."""

    def work(conn: Connection, business_id: BusinessId) -> WalletView:
        set_overdraft(conn, business_id, customer_id, currency, new)
        return wallets_of(conn, business_id, customer_id)[currency]

    return tenant.run(work)


def configured_first(
    found: Mapping[Currency, WalletView], currencies: Sequence[str]
) -> list[Currency]:
    """Return the currencies of wallets: the configured ones in their order, then the others."""
    order = {code: number for number, code in enumerate(currencies)}
    return sorted(found, key=lambda code: (order.get(code, len(order)), code))


def total_usd(wallets: Sequence[CustomerWallet], rates: Mapping[str, Decimal]) -> int:
    """Return the sum in cents of USD, rounded down."""
    rate_of = {"USD": Decimal(1), **rates}
    with localcontext(prec=60):
        parts = [
            wallet.balance * rate_of[wallet.currency]
            for wallet in wallets
            if wallet.currency in rate_of
        ]
        return int(sum(parts, Decimal(0)).to_integral_value(ROUND_FLOOR))
