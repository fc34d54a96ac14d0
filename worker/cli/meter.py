"""`gullak meter`: which events are measured, and how."""

from typing import Annotated, Literal

import orjson
from typer import Argument, Option

from metering.errors import FieldProblem, InvalidInputError
from metering.ids import MeterId
from metering.json_keys import check_keys
from metering.rate_card.catalogue import (
    Meter,
    NewMeter,
    archive_meter,
    create_meter,
    get_meter,
    list_meters,
)
from worker.cli.command import Group, Tenant
from worker.cli.page import Sentence, field, table

app = Group()


@app.add("create", field("meter_id"))
def create(
    tenant: Tenant,
    name: Annotated[str, Option(help="Its name.")],
    event_name: Annotated[str, Option(help="The events it measures.")],
    unit: Annotated[str, Option(help="The unit of a quantity: tokens, calls.")],
    aggregation: Annotated[
        Literal["count", "sum"], Option(help="Each event counts one, or --key is summed.")
    ] = "count",
    key: Annotated[str | None, Option(help="The property that is summed.")] = None,
    filter_json: Annotated[
        str | None, Option("--filter", help="Which events count, as JSON text.")
    ] = None,
    description: Annotated[str | None, Option()] = None,
) -> Meter:
    """Make a meter and print its id."""
    new = {
        "name": name,
        "event_name": event_name,
        "measurement_unit": unit,
        "aggregation": {"type": aggregation, "key": key},
        "description": description,
        "filter": None if filter_json is None else _json("filter", filter_json),
    }
    return tenant.run(create_meter, NewMeter.model_validate(new))


def _json(name: str, text: str) -> object:
    check_keys(text, name)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(FieldProblem(name, f"is not JSON: {error}")) from None


def _aggregation(meter: Meter) -> str:
    how = meter.aggregation
    return how.type if how.key is None else f"{how.type} of {how.key}"


@app.add(
    "list",
    table(
        """
            meter_id, name~, event_name, aggregation, filter, archived_at, unit = measurement_unit
        """,
        aggregation=_aggregation,
        filter=lambda meter: meter.filter.model_dump_json() if meter.filter else None,
    ),
)
def list_all(tenant: Tenant) -> list[Meter]:
    """List the meters of a business, archived ones too."""
    return tenant.run(list_meters)


@app.add("archive")
def archive(
    tenant: Tenant,
    meter: Annotated[MeterId, Argument(help="Meter id.", metavar="METER")],
    undo: Annotated[bool, Option("--undo", help="Measure by it again.")] = False,
) -> Sentence:
    """Stop measuring by a meter; past charges stay."""
    tenant.run(archive_meter, meter, archived=not undo)
    text = f"{meter} {'measures again' if undo else 'is archived'}"
    return Sentence(tenant.run(get_meter, meter), text)
