"""Prices: minor units per number of units of a meter, in one currency, from a given moment."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, Field

from api.paging import Page, Paged
from api.parameters import PricePath
from api.tenant import Reader, Writer
from api.views import Exact, View
from metering.ids import BusinessId, Currency, MeterId, PriceId
from metering.rate_card.catalogue import (
    BEGINNING,
    NewPrice,
    Price,
    create_price,
    end_price,
    page_of_prices,
)

router: Final = APIRouter(prefix="/prices", tags=["prices"])

# The beginning of time is null on the wire.
Moment = Annotated[
    datetime | None, BeforeValidator(lambda moment: None if moment == BEGINNING else moment)
]


class PriceOut(View):
    """A price; `price_per_unit` is an exact decimal text, in minor units per `units`.

    `effective_from` is null if the price applies from the beginning. It does not apply from
    `ended_at` on; if `is_taken_back`, it never applied. From `superseded_from` on the price
    `superseded_by` takes its place.
    """

    id: PriceId = Field(validation_alias="price_id")
    business_id: BusinessId
    meter_id: MeterId
    currency: Currency
    price_per_unit: Exact
    units: int
    effective_from: Moment
    ended_at: Moment
    is_taken_back: bool
    superseded_by: PriceId | None
    superseded_from: datetime | None


@router.post("", status_code=201, response_model=PriceOut)
def make_price(tenant: Writer, new: NewPrice) -> Price:
    """Create a price. It never changes what was charged already.

    A price that another one with a later start replaces says so in `superseded_by`. An archived
    meter takes a price too, so that it can have the right one before it is in use again.
    """
    return tenant.run(create_price, new, tenant.context.currencies)


@router.delete("/{price_id}", response_model=PriceOut)
def end_price_now(tenant: Writer, price_id: PricePath) -> Price:
    """End a price now, or take it back if nothing was charged since it was made."""
    return tenant.run(end_price, price_id)


@router.get("", response_model=Page[PriceOut])
def list_prices(
    tenant: Reader, paged: Paged, meter_id: Annotated[MeterId | None, Query(max_length=64)] = None
) -> Page[Price]:
    """List prices, newest first."""
    return Page(items=tenant.run(page_of_prices, meter_id=meter_id, **paged.rows(PriceId)))
