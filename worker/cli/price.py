"""`gullak price`: what a unit costs, since when."""

from typing import Annotated

import typer

from metering.ids import PriceId
from metering.rate_card.catalogue import (
    BEGINNING,
    NewPrice,
    Price,
    create_price,
    end_price,
    list_prices,
)
from worker.cli.options import AsJson, Business, CurrencyCode, price, start
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, business_of, open_target

app = typer.Typer(help="What a unit costs, since when.", no_args_is_help=True)


@app.command("create")
def create(
    *,
    meter: Annotated[str, typer.Option(help="Meter id.", metavar="ID")],
    currency: CurrencyCode,
    per_unit: Annotated[str, price("--per-unit", "The price of --units, a decimal: 0.00025.")],
    units: Annotated[int, typer.Option(help="The price is for so many units.")] = 1,
    since: Annotated[
        str | None,
        start(
            "--from",
            "From when it is in force, or: beginning, now. Default: beginning for the first price"
            " of a meter in a currency, now for a later one.",
        ),
    ] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make a price and print its id; what was already charged does not change."""
    given = {
        "meter_id": meter,
        "currency": currency,
        "price_per_unit": per_unit,
        "units": units,
        "effective_from": since,
    }
    new = NewPrice.model_validate(given)
    with open_target(data_dir) as target, target.transaction() as conn:
        made = create_price(conn, business_of(conn, business), new, target.currencies)
    if as_json:
        print_json(made)
    else:
        typer.echo(made.price_id)
    if made.superseded_by:
        typer.echo(
            f"{made.price_id} is in force only until {made.superseded_from:%Y-%m-%dT%H:%M:%SZ},"
            f" when {made.superseded_by} begins; if that one is wrong:"
            f" gullak price end {made.superseded_by}",
            err=True,
        )


@app.command("end")
def end(
    *,
    price: Annotated[str, typer.Argument(help="Price id.", metavar="PRICE")],
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """End a price from now on, or take it back if nothing was charged since it was made."""
    with open_target(data_dir) as target, target.transaction() as conn:
        ended = end_price(conn, business_of(conn, business), PriceId(price))
    if as_json:
        print_json(ended)
    else:
        typer.echo(f"{price} {'was never in force' if ended.is_taken_back else 'has ended'}")


@app.command("list")
def list_all(
    *, business: Business = None, as_json: AsJson = False, data_dir: DataDir = None
) -> None:
    """List the prices of a business, by meter and currency, in the order they take effect."""
    with open_target(data_dir) as target, target.transaction() as conn:
        prices = list_prices(conn, business_of(conn, business))
    if as_json:
        print_json(prices)
        return
    columns = (
        "price_id",
        "meter_id",
        "currency",
        "per unit (minor)#",
        "units#",
        "from",
        "until",
        "then",
    )
    print_table(
        columns,
        [
            (p.price_id, p.meter_id, p.currency, p.price_per_unit, p.units, _since(p), *_until(p))
            for p in prices
        ],
    )


def _since(price: Price) -> object:
    return "the beginning" if price.effective_from == BEGINNING else price.effective_from


def _until(price: Price) -> tuple[object, object]:
    """Return when a price ends and what comes then."""
    if price.is_taken_back:
        return "taken back", None
    return price.ended_at or price.superseded_from, price.superseded_by
