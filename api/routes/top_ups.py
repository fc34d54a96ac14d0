"""Automatic top-ups: the rule of a wallet, and its state."""

from datetime import datetime
from typing import Final

from fastapi import APIRouter, Response
from pydantic import Field

from api.idempotency import REPEATABLE
from api.paging import Page, Paged
from api.parameters import CurrencyPath, CustomerPath
from api.tenant import Reader, Writer
from api.views import View
from metering.ids import AccountId, Currency, CustomerId, PackageId, PurchaseId, WalletId
from metering.payment.top_ups.top_up import (
    NewTopUp,
    TopUp,
    delete_top_up,
    enable_top_up,
    get_top_up,
    page_of_top_ups,
    set_top_up,
)

router: Final = APIRouter(tags=["top-ups"])

WALLET: Final = "/customers/{customer_id}/wallets/{currency}/top-up"


class TopUpOut(View):
    """The top-up rule of a wallet; amounts in minor units of its currency.

    `low_since`: since when it needs a top-up; `pending_purchase_id`: the one under way; `retry_at`:
    none starts before. A disabled rule (`disabled_at`) charges nothing until it is enabled.
    """

    wallet_id: WalletId
    customer_id: CustomerId
    currency: Currency
    threshold: int = Field(validation_alias="threshold_minor")
    package_id: PackageId
    account_id: AccountId
    payment_method: str
    day_cap: int = Field(validation_alias="day_cap_minor")
    month_cap: int = Field(validation_alias="month_cap_minor")
    declines: int
    declines_max: int
    low_since: datetime | None
    pending_purchase_id: PurchaseId | None
    retry_at: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime
    updated_at: datetime


@router.put(WALLET, response_model=TopUpOut)
def put_top_up(
    tenant: Writer, customer_id: CustomerPath, currency: CurrencyPath, new: NewTopUp
) -> TopUp:
    """Create or change the rule of a wallet; a disabled rule stays disabled."""
    return tenant.run(set_top_up, customer_id, currency, new)


@router.get(WALLET, response_model=TopUpOut)
def show_top_up(tenant: Reader, customer_id: CustomerPath, currency: CurrencyPath) -> TopUp:
    """Return the rule of a wallet."""
    return tenant.run(get_top_up, customer_id, currency)


@router.delete(WALLET, status_code=204, response_class=Response)
def delete_rule_of_wallet(
    tenant: Writer, customer_id: CustomerPath, currency: CurrencyPath
) -> None:
    """Delete the rule of a wallet; a top-up under way goes on."""
    tenant.run(delete_top_up, customer_id, currency)


@router.post(f"{WALLET}/enable", response_model=TopUpOut, dependencies=REPEATABLE)
def enable_rule_of_wallet(
    tenant: Writer, customer_id: CustomerPath, currency: CurrencyPath
) -> TopUp:
    """Enable the rule of a wallet, and forget earlier declines."""
    return tenant.run(enable_top_up, customer_id, currency)


@router.get("/top-ups", response_model=Page[TopUpOut])
def top_ups_page(tenant: Reader, paged: Paged) -> Page[TopUp]:
    """List the rules of all wallets, those of the newest wallets first; ids are wallet ids."""
    return Page(items=tenant.run(page_of_top_ups, **paged.rows(WalletId)))
