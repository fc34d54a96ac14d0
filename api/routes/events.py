"""Usage events: taken whole or not at all, with one round trip to Redis; and where each is."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel

from api.auth import Ingester, Reader
from api.context import Scoped
from api.paging import Page, Paged
from api.routes.ingest import Ingested, ingest
from metering.clock import Moment
from metering.ids import BusinessId, Currency, CustomerId, EntryId, MeterId
from metering.money import plain
from metering.usage.find import EventStatus, FoundEvent, find_event
from metering.usage.list import list_events
from metering.usage.walk import EventFilter

router: Final = APIRouter(prefix="/events", tags=["events"])


class EventOut(BaseModel):
    """A usage event and where it is.

    `cost` in minor units of `currency`, exact; `ledger_entry_id`: the debit that it is part of.
    A refused event says why, and waits among the refused events to be sent again.
    """

    event_id: str
    business_id: BusinessId
    customer_id: str
    event_name: str
    timestamp: datetime
    metadata: dict[str, bool | int | float | str]
    status: EventStatus
    cost: str | None
    currency: Currency | None
    ledger_entry_id: EntryId | None
    reason: str | None
    detail: str | None


def _out(event: FoundEvent) -> EventOut:
    return EventOut(
        event_id=event.event_id,
        business_id=event.business_id,
        customer_id=event.customer_id,
        event_name=event.event_name,
        timestamp=event.event_at,
        metadata=event.metadata,
        status=event.status,
        cost=None if event.cost_minor is None else plain(event.cost_minor),
        currency=event.currency,
        ledger_entry_id=event.entry_id,
        reason=event.reason,
        detail=event.detail,
    )


_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ingest"}}},
    }
}


@router.post("/ingest", openapi_extra=_BODY, response_model=Ingested)
async def ingest_events(_caller: Ingester, request: Request) -> Response:
    """Take 1 to 1,000 events. The same `event_id` again is charged once, however often it comes."""
    return await ingest(request)


async def _filter(
    *,
    customer_id: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    event_name: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    meter_id: Annotated[
        str | None, Query(max_length=64, description="Events that this meter counts.")
    ] = None,
    ledger_entry_id: Annotated[
        str | None, Query(max_length=64, description="Events that this debit is made of.")
    ] = None,
    start: Annotated[Moment | None, Query(description="Events of this moment or later.")] = None,
    end: Annotated[Moment | None, Query(description="Events of this moment or earlier.")] = None,
) -> EventFilter:
    return EventFilter(
        entry_id=None if ledger_entry_id is None else EntryId(ledger_entry_id),
        customer_id=None if customer_id is None else CustomerId(customer_id),
        event_name=event_name,
        meter_id=None if meter_id is None else MeterId(meter_id),
        start=start,
        end=end,
    )


@router.get("")
def events_page(
    caller: Reader, scope: Scoped, paged: Paged, wanted: Annotated[EventFilter, Depends(_filter)]
) -> Page[EventOut]:
    """List events, newest first: those still buffered, then by when they were settled."""
    found = list_events(
        lambda: scope.sessions.tenant(caller.business_id),
        scope.buffer,
        caller.business_id,
        wanted,
        page=paged.size,
        offset=paged.offset,
        after=paged.after,
    )
    return Page(items=[_out(event) for event in found])


# A producer's id may hold a slash.
@router.get("/{event_id:path}")
def show_event(
    caller: Reader,
    scope: Scoped,
    event_id: Annotated[str, Path(min_length=1, max_length=255)],
) -> EventOut:
    """Return one event by the producer's id, with its cost once it is posted."""
    return _out(
        find_event(
            lambda: scope.sessions.tenant(caller.business_id),
            scope.buffer,
            caller.business_id,
            event_id,
        )
    )
