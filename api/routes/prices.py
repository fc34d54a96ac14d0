"""Prices: minor units per so many units of a meter, in a currency, from a moment on."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from api.auth import Reader, Writer
from api.context import Scoped
from api.paging import Page, Paged
from metering.ids import BusinessId, Currency, MeterId, PriceId
from metering.money import plain
from metering.rate_card.catalogue import (
    BEGINNING,
    NewPrice,
    Price,
    create_price,
    end_price,
    page_of_prices,
)

router: Final = APIRouter(prefix="/prices", tags=["prices"])

PricePath = Annotated[PriceId, Path(min_length=1, max_length=64)]


class PriceOut(BaseModel):
    """A price; `price_per_unit` is an exact decimal text, in minor units per `units`.

    `effective_from` is null if the price is in force from the beginning. From `ended_at` on it is
    not in force; `is_taken_back`: it never was. From `superseded_from` on the price
    `superseded_by` takes its place.
    """

    id: PriceId
    business_id: BusinessId
    meter_id: MeterId
    currency: Currency
    price_per_unit: str
    units: int
    effective_from: datetime | None
    ended_at: datetime | None
    is_taken_back: bool
    superseded_by: PriceId | None
    superseded_from: datetime | None


def _out(price: Price) -> PriceOut:
    return PriceOut(
        id=price.price_id,
        business_id=price.business_id,
        meter_id=price.meter_id,
        currency=price.currency,
        price_per_unit=plain(price.price_per_unit),
        units=price.units,
        effective_from=None if price.effective_from == BEGINNING else price.effective_from,
        ended_at=None if price.ended_at == BEGINNING else price.ended_at,
        is_taken_back=price.is_taken_back,
        superseded_by=price.superseded_by,
        superseded_from=price.superseded_from,
    )


@router.post("", status_code=201)
def make_price(caller: Writer, scope: Scoped, new: NewPrice) -> PriceOut:
    """Make a price. It never changes what was charged already.

    One that is made before another that began later is superseded by that one: it says so.
    """
    return _out(
        scope.run(
            caller.business_id,
            lambda conn: create_price(conn, caller.business_id, new, scope.currencies),
        )
    )


@router.delete("/{price_id}")
def end_price_now(caller: Writer, scope: Scoped, price_id: PricePath) -> PriceOut:
    """End a price from now on, or take it back if nothing was charged since it was made."""
    return _out(
        scope.run(caller.business_id, lambda conn: end_price(conn, caller.business_id, price_id))
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
