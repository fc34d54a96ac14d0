"""Prices: minor units per so many units of a meter, in a currency, from a moment on."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.auth import Reader, Writer
from api.paging import Page, Paged
from api.scope import Scoped
from metering.ids import BusinessId, Currency, MeterId, PriceId
from metering.money import plain
from metering.rate_card.catalogue import (
    BEGINNING,
    NewPrice,
    Price,
    create_price,
    page_of_prices,
)

router: Final = APIRouter(prefix="/prices", tags=["prices"])


class PriceOut(BaseModel):
    """A price; `price_per_unit` is an exact decimal text, in minor units per `units`.

    `effective_from` is null if the price is in force from the beginning.
    """

    id: PriceId
    business_id: BusinessId
    meter_id: MeterId
    currency: Currency
    price_per_unit: str
    units: int
    effective_from: datetime | None


def _out(price: Price) -> PriceOut:
    return PriceOut(
        id=price.price_id,
        business_id=price.business_id,
        meter_id=price.meter_id,
        currency=price.currency,
        price_per_unit=plain(price.price_per_unit),
        units=price.units,
        effective_from=None if price.effective_from == BEGINNING else price.effective_from,
    )


@router.post("", status_code=201)
def make_price(caller: Writer, scope: Scoped, new: NewPrice) -> PriceOut:
    """Make a price. It never changes what was charged already."""
    return _out(
        scope.run(
            caller.business_id,
            lambda conn: create_price(conn, caller.business_id, new, scope.currencies),
        )
    )


@router.get("")
def list_prices(
    caller: Reader,
    scope: Scoped,
    paged: Paged,
    meter_id: Annotated[str | None, Query(max_length=64)] = None,
) -> Page[PriceOut]:
    """List prices, newest first."""
    found = scope.run(
        caller.business_id,
        lambda conn: page_of_prices(
            conn,
            caller.business_id,
            meter_id=None if meter_id is None else MeterId(meter_id),
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(PriceId),
        ),
    )
    return Page(items=[_out(price) for price in found])
