"""Lots: the credit of a customer as it came, what is left of each, and until when it counts."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.auth import Reader
from api.context import Scoped
from api.paging import Page, Paged
from api.routes.wallets import CustomerPath
from metering.ids import Currency, CustomerId, EntryId, LotId
from metering.ledger.entry import Source
from metering.ledger.lots.listing import LotFilter, LotView, list_lots

router: Final = APIRouter(prefix="/customers/{customer_id}/wallets/lots", tags=["lots"])


class LotOut(BaseModel):
    """A lot. Amounts in minor units; `cost_basis`: what was paid for it, null: nobody said.

    Nothing of it is spent while it is `frozen`, because its payment is in dispute, or after it has
    expired. `ledger_entry_id`: the credit that made it, null for what was there before lots were.
    """

    id: LotId
    customer_id: CustomerId
    currency: Currency
    source: Source
    priority: int
    amount: int
    remaining: int
    cost_basis: int | None
    expires_at: datetime | None
    frozen: bool
    ledger_entry_id: EntryId | None
    created_at: datetime


def _out(lot: LotView) -> LotOut:
    return LotOut(
        id=lot.lot_id,
        customer_id=lot.customer_id,
        currency=lot.currency,
        source=lot.source,
        priority=lot.priority,
        amount=lot.amount_minor,
        remaining=lot.left_minor,
        cost_basis=lot.cost_basis_minor,
        expires_at=lot.expires_at,
        frozen=lot.frozen_at is not None,
        ledger_entry_id=lot.entry_id,
        created_at=lot.created_at,
    )


@router.get("")
def lots_page(
    *,
    caller: Reader,
    scope: Scoped,
    customer_id: CustomerPath,
    paged: Paged,
    currency: Annotated[str | None, Query(max_length=10)] = None,
    only_left: Annotated[bool, Query(description="Leave out what is used up.")] = False,
) -> Page[LotOut]:
    """List the lots of all wallets of a customer, or of one currency, newest first."""
    wanted = LotFilter(
        currency=None if currency is None else Currency(currency), only_left=only_left
    )
    found = scope.run(
        caller.business_id,
        lambda conn: list_lots(
            conn,
            caller.business_id,
            customer_id,
            wanted,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(LotId),
        ),
    )
    return Page(items=[_out(lot) for lot in found])
