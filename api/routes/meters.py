"""Meters: which events are counted, or which of their properties is summed."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from pydantic import Field

from api.idempotency import REPEATABLE
from api.paging import Page, Paged
from api.parameters import MeterPath
from api.tenant import Reader, Writer
from api.views import View
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


_Locale = Annotated[
    str | None,
    Query(
        alias="locale",
        max_length=35,
        description="Changes nothing: a meter has one name. The vendor's SDK may send it.",
    ),
]


class MeterOut(View):
    """A meter."""

    id: MeterId = Field(validation_alias="meter_id")
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


@router.post("", status_code=201, response_model=MeterOut)
def make_meter(tenant: Writer, new: NewMeter) -> Meter:
    """Create a meter. It measures the events that are debited from now on."""
    return tenant.run(create_meter, new)


@router.get("", response_model=Page[MeterOut])
def list_meters(
    tenant: Reader,
    paged: Paged,
    *,
    archived: Annotated[bool, Query()] = False,
    _locale: _Locale = None,
) -> Page[Meter]:
    """List the meters in use, or the archived ones, newest first."""
    return Page(items=tenant.run(page_of_meters, archived=archived, **paged.rows(MeterId)))


@router.get("/{meter_id}", response_model=MeterOut)
def show_meter(tenant: Reader, meter_id: MeterPath, _locale: _Locale = None) -> Meter:
    """Return one meter."""
    return tenant.run(get_meter, meter_id)


@router.delete("/{meter_id}", status_code=204, response_class=Response)
def delete_meter(tenant: Writer, meter_id: MeterPath) -> None:
    """Archive a meter: it stops measuring, and what it measured stays."""
    tenant.run(archive_meter, meter_id)


@router.post(
    "/{meter_id}/unarchive", status_code=200, response_class=Response, dependencies=REPEATABLE
)
def unarchive_meter(tenant: Writer, meter_id: MeterPath) -> Response:
    """Put an archived meter in use again."""
    tenant.run(archive_meter, meter_id, archived=False)
    return Response(status_code=200, media_type="application/json")
