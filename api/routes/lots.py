"""Lots: each credit of a customer, how much of it is left, and until when it can be spent."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import Field

from api.paging import Page, Paged
from api.parameters import CurrencyQuery, CustomerPath
from api.tenant import Reader
from api.views import Happened, View
from metering.ids import Currency, CustomerId, EntryId, LotId
from metering.ledger.entry import Source
from metering.ledger.lots.listing import LotFilter, LotView, list_lots

router: Final = APIRouter(prefix="/customers/{customer_id}/wallets/lots", tags=["lots"])


class LotOut(View):
    """A lot. Amounts in minor units; `cost_basis`: what was paid for it, null if unknown.

    It cannot be spent while it is `frozen`, because its payment is in dispute, or after it has
    expired. `ledger_entry_id`: the credit that made it, null if it is older than the lots.
    """

    id: LotId = Field(validation_alias="lot_id")
    customer_id: CustomerId
    currency: Currency
    source: Source
    priority: int
    amount: int = Field(validation_alias="amount_minor")
    remaining: int = Field(validation_alias="left_minor")
    cost_basis: int | None = Field(validation_alias="cost_basis_minor")
    expires_at: datetime | None
    frozen: Happened = Field(validation_alias="frozen_at")
    ledger_entry_id: EntryId | None = Field(validation_alias="entry_id")
    created_at: datetime


@router.get("", response_model=Page[LotOut])
def lots_page(
    *,
    tenant: Reader,
    customer_id: CustomerPath,
    paged: Paged,
    currency: CurrencyQuery = None,
    only_left: Annotated[bool, Query(description="Leave out what is used up.")] = False,
) -> Page[LotView]:
    """List the lots of all wallets of a customer, or of one currency, newest first."""
    wanted = LotFilter(currency=currency, only_left=only_left)
    return Page(items=tenant.run(list_lots, customer_id, wanted, **paged.rows(LotId)))
