"""Automatic top-ups: the rule of a wallet, how it stands, and what is under way."""

from datetime import datetime
from typing import Final

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.auth import Reader, Writer
from api.context import REPEATABLE, Scoped
from api.paging import Page, Paged
from api.routes.wallets import CurrencyPath, CustomerPath
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


class TopUpOut(BaseModel):
    """The top-up rule of a wallet; amounts in minor units of its currency.

    `low_since`: it wants a top-up; `pending_purchase_id`: one is under way; `retry_at`: none is
    started before. A rule that is off (`disabled_at`) charges nothing until it is enabled.
    """

    wallet_id: WalletId
    customer_id: CustomerId
    currency: Currency
    threshold: int
    package_id: PackageId
    account_id: AccountId
    payment_method: str
    day_cap: int
    month_cap: int
    declines: int
    declines_max: int
    low_since: datetime | None
    pending_purchase_id: PurchaseId | None
    retry_at: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime
    updated_at: datetime


def _out(rule: TopUp) -> TopUpOut:
    return TopUpOut(
        wallet_id=rule.wallet_id,
        customer_id=rule.customer_id,
        currency=rule.currency,
        threshold=rule.threshold_minor,
        package_id=rule.package_id,
        account_id=rule.account_id,
        payment_method=rule.payment_method,
        day_cap=rule.day_cap_minor,
        month_cap=rule.month_cap_minor,
        declines=rule.declines,
        declines_max=rule.declines_max,
        low_since=rule.low_since,
        pending_purchase_id=rule.pending_purchase_id,
        retry_at=rule.retry_at,
        disabled_at=rule.disabled_at,
        disabled_reason=rule.disabled_reason,
        created_at=rule.created_at,
        updated_at=rule.updated_at,
    )


@router.put(WALLET)
def put_top_up(
    *,
    caller: Writer,
    scope: Scoped,
    customer_id: CustomerPath,
    currency: CurrencyPath,
    new: NewTopUp,
) -> TopUpOut:
    """Set the rule of a wallet, or change it; one that is off stays off."""
    return _out(
        scope.run(
            caller.business_id,
            lambda conn: set_top_up(conn, caller.business_id, customer_id, currency, new),
        )
    )


@router.get(WALLET)
def show_top_up(
    caller: Reader, scope: Scoped, customer_id: CustomerPath, currency: CurrencyPath
) -> TopUpOut:
    """Return the rule of a wallet."""
    return _out(
        scope.run(
            caller.business_id,
            lambda conn: get_top_up(conn, caller.business_id, customer_id, currency),
        )
    )


@router.delete(WALLET, status_code=204, response_class=Response)
def delete_rule_of_wallet(
    caller: Writer, scope: Scoped, customer_id: CustomerPath, currency: CurrencyPath
) -> None:
    """Take the rule of a wallet away; what is under way ends as it ends."""
    scope.run(
        caller.business_id,
        lambda conn: delete_top_up(conn, caller.business_id, customer_id, currency),
    )


@router.post(f"{WALLET}/enable", dependencies=REPEATABLE)
def enable_rule_of_wallet(
    caller: Writer, scope: Scoped, customer_id: CustomerPath, currency: CurrencyPath
) -> TopUpOut:
    """Switch the rule of a wallet on again, as if nothing had been declined."""
    return _out(
        scope.run(
            caller.business_id,
            lambda conn: enable_top_up(conn, caller.business_id, customer_id, currency),
        )
    )


@router.get("/top-ups")
def top_ups_page(caller: Reader, scope: Scoped, paged: Paged) -> Page[TopUpOut]:
    """List the rules of all wallets, those of the newest wallets first; ids are wallet ids."""
    found = scope.run(
        caller.business_id,
        lambda conn: page_of_top_ups(
            conn,
            caller.business_id,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(WalletId),
        ),
    )
    return Page(items=[_out(rule) for rule in found])
