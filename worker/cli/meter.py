"""`gullak meter`: which events are measured, and how."""

from typing import Annotated, Literal

import orjson
import typer

from metering.errors import FieldProblem, InvalidInputError
from metering.ids import MeterId
from metering.rate_card.catalogue import (
    Meter,
    NewMeter,
    archive_meter,
    create_meter,
    list_meters,
)
from worker.cli.options import AsJson, Business, Wide
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, business_of, open_target

app = typer.Typer(help="Which events are measured, and how.", no_args_is_help=True)


@app.command("create")
def create(
    *,
    name: Annotated[str, typer.Option(help="Its name.")],
    event_name: Annotated[str, typer.Option(help="The events it measures.")],
    unit: Annotated[str, typer.Option(help="What a quantity is called: tokens, calls.")],
    aggregation: Annotated[
        Literal["count", "sum"], typer.Option(help="Each event counts one, or --key is summed.")
    ] = "count",
    key: Annotated[str | None, typer.Option(help="The property that is summed.")] = None,
    filter_json: Annotated[
        str | None, typer.Option("--filter", help="Which events count, as JSON text.")
    ] = None,
    description: Annotated[str | None, typer.Option()] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make a meter and print its id."""
    new = NewMeter.model_validate(
        {
            "name": name,
            "event_name": event_name,
            "measurement_unit": unit,
            "aggregation": {"type": aggregation, "key": key},
            "description": description,
            "filter": None if filter_json is None else _json("filter", filter_json),
        }
    )
    with open_target(data_dir) as target, target.transaction() as conn:
        meter = create_meter(conn, business_of(conn, business), new)
    if as_json:
        print_json(meter)
    else:
        typer.echo(meter.meter_id)


def _json(field: str, text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(FieldProblem(field, f"is not JSON: {error}")) from None


@app.command("list")
def list_all(
    *,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the meters of a business, archived ones too."""
    with open_target(data_dir) as target, target.transaction() as conn:
        meters = list_meters(conn, business_of(conn, business))
    if as_json:
        print_json(meters)
        return
    columns = ("meter_id", "name~", "event_name", "aggregation", "filter", "archived_at", "unit")
    print_table(columns, [_row(meter) for meter in meters], wide=wide)


def _row(meter: Meter) -> tuple[object, ...]:
    how = meter.aggregation
    return (
        meter.meter_id,
        meter.name,
        meter.event_name,
        how.type if how.key is None else f"{how.type} of {how.key}",
        meter.filter.model_dump_json() if meter.filter else None,
        meter.archived_at,
        meter.measurement_unit,
    )


@app.command("archive")
def archive(
    *,
    meter: Annotated[str, typer.Argument(help="Meter id.", metavar="METER")],
    undo: Annotated[bool, typer.Option("--undo", help="Measure by it again.")] = False,
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Stop measuring by a meter; what was charged stays."""
    with open_target(data_dir) as target, target.transaction() as conn:
        archive_meter(conn, business_of(conn, business), MeterId(meter), archived=not undo)
    typer.echo(f"{meter} {'measures again' if undo else 'is archived'}")
