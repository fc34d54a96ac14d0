"""Usage events, and where each of them is."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field

from api.paging import Page, Paged
from api.parameters import TextQuery
from api.tenant import Reader
from api.views import Exact, Metadata, View
from metering.clock import Moment
from metering.ids import BusinessId, Currency, CustomerId, EntryId, MeterId
from metering.usage.find import EventStatus, FoundEvent, find_event
from metering.usage.list import list_events
from metering.usage.walk import EventFilter

router: Final = APIRouter(prefix="/events", tags=["events"])


class EventOut(View):
    """A usage event and where it is.

    `cost` in minor units of `currency`, exact; `ledger_entry_id`: the debit that it is part of.
    A refused event has a reason; it waits among the refused events to be sent again.
    """

    event_id: str
    business_id: BusinessId
    customer_id: str
    event_name: str
    timestamp: datetime = Field(validation_alias="event_at")
    metadata: Metadata
    status: EventStatus
    cost: Exact | None = Field(validation_alias="cost_minor")
    currency: Currency | None
    ledger_entry_id: EntryId | None = Field(validation_alias="entry_id")
    reason: str | None
    detail: str | None


async def _filter(
    *,
    customer_id: Annotated[CustomerId | None, Query(min_length=1, max_length=255)] = None,
    event_name: TextQuery = None,
    meter_id: Annotated[
        MeterId | None, Query(max_length=64, description="Events that this meter counts.")
    ] = None,
    ledger_entry_id: Annotated[
        EntryId | None, Query(max_length=64, description="Events that are part of this debit.")
    ] = None,
    start: Annotated[Moment | None, Query(description="Events of this moment or later.")] = None,
    end: Annotated[Moment | None, Query(description="Events of this moment or earlier.")] = None,
) -> EventFilter:
    return EventFilter(
        entry_id=ledger_entry_id,
        customer_id=customer_id,
        event_name=event_name,
        meter_id=meter_id,
        start=start,
        end=end,
    )


@router.get("", response_model=Page[EventOut])
def events_page(
    tenant: Reader, paged: Paged, wanted: Annotated[EventFilter, Depends(_filter)]
) -> Page[FoundEvent]:
    """List events, newest first: the buffered ones, then the others by when they were debited."""
    buffer = tenant.context.buffer
    rows = paged.rows(str)
    found = list_events(tenant.transaction, buffer, tenant.business_id, wanted, **rows)
    return Page(items=found)


# A producer's id may hold a slash.
@router.get("/{event_id:path}", response_model=EventOut)
def show_event(
    tenant: Reader, event_id: Annotated[str, Path(min_length=1, max_length=255)]
) -> FoundEvent:
    """Return one event by the producer's id, with its cost once it is debited."""
    return find_event(tenant.transaction, tenant.context.buffer, tenant.business_id, event_id)
