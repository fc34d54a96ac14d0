"""`gullak price`: what a unit costs, since when."""

from typing import Annotated

import typer
from typer import Argument, Option

from metering.ids import PriceId
from metering.rate_card.catalogue import (
    BEGINNING,
    NewPrice,
    Price,
    create_price,
    end_price,
    get_meter,
    list_prices,
)
from worker.cli.command import Group, Options, Tenant
from worker.cli.options import CurrencyCode, price, start
from worker.cli.page import Sentence, field, table

app = Group()

_NEW = Options(
    meter_id=Annotated[str, Option("--meter", help="Meter id.", metavar="ID")],
    currency=CurrencyCode,
    price_per_unit=Annotated[str, price("--per-unit", "The price of --units: 0.00025.")],
    units=Annotated[int | None, Option(help="The price is for so many units. Default: 1.")],
    effective_from=Annotated[
        str | None,
        start(
            "--from",
            "When it takes effect, or: beginning, now. Default: beginning for the first price"
            " of a meter in a currency, now for a later one.",
        ),
    ],
)


@app.add("create", field("price_id"))
def create(tenant: Tenant, new: Annotated[NewPrice, _NEW]) -> Price:
    """Make a price and print its id; past charges do not change."""
    made = tenant.run(create_price, new, tenant.target.currencies)
    if made.superseded_by:
        typer.echo(
            f"{made.price_id} is in force only until {made.superseded_from:%Y-%m-%dT%H:%M:%SZ},"
            f" when {made.superseded_by} begins; if that one is wrong:"
            f" gullak price end {made.superseded_by}",
            err=True,
        )
    if tenant.run(get_meter, made.meter_id).archived_at is not None:
        typer.echo(
            f"{made.meter_id} is archived: it measures nothing until"
            f" gullak meter archive --undo {made.meter_id}",
            err=True,
        )
    return made


@app.add("end")
def end(
    tenant: Tenant, price: Annotated[PriceId, Argument(help="Price id.", metavar="PRICE")]
) -> Sentence:
    """End a price from now on, or take it back if it was not used yet."""
    ended = tenant.run(end_price, price)
    return Sentence(
        ended, f"{price} {'was never in force' if ended.is_taken_back else 'has ended'}"
    )


def _from(price: Price) -> object:
    return "the beginning" if price.effective_from == BEGINNING else price.effective_from


def _until(price: Price) -> object:
    return "taken back" if price.is_taken_back else price.ended_at or price.superseded_from


@app.add(
    "list",
    table(
        """
            price_id, meter_id, currency, per unit (minor)# = price_per_unit, units#, from = begin,
            until, then
        """,
        begin=_from,
        until=_until,
        then=lambda price: None if price.is_taken_back else price.superseded_by,
        is_short=False,
    ),
)
def list_all(tenant: Tenant) -> list[Price]:
    """List the prices of a business, by meter and currency, in the order they take effect."""
    return tenant.run(list_prices)
