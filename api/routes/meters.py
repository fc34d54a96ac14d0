"""Meters: which events are counted, or which of their properties is summed."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel

from api.auth import Reader, Writer
from api.context import REPEATABLE, Scoped
from api.paging import Page, Paged
from metering.ids import BusinessId, MeterId
from metering.rate_card.catalogue import (
    Aggregation,
    Meter,
    NewMeter,
    archive_meter,
    create_meter,
    get_meter,
    page_of_meters,
)
from metering.rate_card.filter import Filter

router: Final = APIRouter(prefix="/meters", tags=["meters"])

MeterPath = Annotated[MeterId, Path(min_length=1, max_length=64)]


class MeterOut(BaseModel):
    """A meter."""

    id: MeterId
    business_id: BusinessId
    name: str
    event_name: str
    measurement_unit: str
    aggregation: Aggregation
    description: str | None
    filter: Filter | None
    archived_at: datetime | None
    created_at: datetime
    updated_at: datetime


def _out(meter: Meter) -> MeterOut:
    return MeterOut(
        id=meter.meter_id,
        business_id=meter.business_id,
        name=meter.name,
        event_name=meter.event_name,
        measurement_unit=meter.measurement_unit,
        aggregation=meter.aggregation,
        description=meter.description,
        filter=meter.filter,
        archived_at=meter.archived_at,
        created_at=meter.created_at,
        updated_at=meter.updated_at,
    )


@router.post("", status_code=201)
def make_meter(caller: Writer, scope: Scoped, new: NewMeter) -> MeterOut:
    """Make a meter. Events that are drained from now on are measured by it."""
    return _out(
        scope.run(caller.business_id, lambda conn: create_meter(conn, caller.business_id, new))
    )


@router.get("")
def list_meters(
    caller: Reader, scope: Scoped, paged: Paged, *, archived: Annotated[bool, Query()] = False
) -> Page[MeterOut]:
    """List the meters in use, or the archived ones, newest first."""
    found = scope.run(
        caller.business_id,
        lambda conn: page_of_meters(
            conn,
            caller.business_id,
            archived=archived,
            page=paged.size,
            offset=paged.offset,
            after=paged.after_as(MeterId),
        ),
    )
    return Page(items=[_out(meter) for meter in found])


@router.get("/{meter_id}")
def show_meter(caller: Reader, scope: Scoped, meter_id: MeterPath) -> MeterOut:
    """Return one meter."""
    return _out(
        scope.run(caller.business_id, lambda conn: get_meter(conn, caller.business_id, meter_id))
    )


@router.delete("/{meter_id}", status_code=204, response_class=Response)
def delete_meter(caller: Writer, scope: Scoped, meter_id: MeterPath) -> None:
    """Archive a meter: it measures no more, and what it measured stays."""
    scope.run(caller.business_id, lambda conn: archive_meter(conn, caller.business_id, meter_id))


@router.post(
    "/{meter_id}/unarchive", status_code=200, response_class=Response, dependencies=REPEATABLE
)
def unarchive_meter(caller: Writer, scope: Scoped, meter_id: MeterPath) -> Response:
    """Measure by a meter again."""
    scope.run(
        caller.business_id,
        lambda conn: archive_meter(conn, caller.business_id, meter_id, archived=False),
    )
    return Response(status_code=200, media_type="application/json")
