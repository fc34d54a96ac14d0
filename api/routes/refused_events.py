"""Refused events: why each was refused, and how to send them again after the cause is gone."""

from datetime import datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import Connection

from api.idempotency import REPEATABLE
from api.paging import Page, Paged
from api.parameters import RefusalPath, TextQuery, number_of
from api.tenant import Reader, Writer
from api.views import Metadata, Number, View
from metering.fields import NO_NUL, Filled255
from metering.ids import BusinessId, RefusalId
from metering.usage.refused import (
    NOTE_CHARS_MAX,
    RefusedEvent,
    Resolution,
    Selection,
    dismiss,
    get_refused,
    newest_refused,
    replay,
)

router: Final = APIRouter(prefix="/refused-events", tags=["refused events"])

# The most that one call sends: more takes longer than a client waits.
REPLAY_MAX: Final = 5000


class UsageOut(View):
    """The event as it was sent."""

    event_id: str
    customer_id: str
    event_name: str
    timestamp: str = Field(validation_alias="event_at")
    metadata: Metadata


class RefusedOut(View):
    """A usage event that could not be charged: `reason` for programs, `detail` for people.

    `event` is null if the buffered bytes could not be read; those are not sent again.
    `resolution`: why it no longer waits.
    """

    id: Number = Field(validation_alias="refusal_id")
    business_id: BusinessId
    event_id: str
    customer_id: str
    reason: str
    detail: str
    refused_at: datetime
    event: Annotated[UsageOut | None, BeforeValidator(lambda read: read())]
    resolved_at: datetime | None
    resolution: Resolution | None
    resolution_note: str | None


class ReplayRequest(BaseModel):
    """Which refused events to send again; a field that is left out does not matter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Filled255 | None = None
    event_id: Filled255 | None = None
    customer_id: Filled255 | None = None


class Replayed(BaseModel):
    """How many events were sent; `has_more`: it is as many as one call sends, so call again."""

    replayed_count: int
    has_more: bool


async def _selection(
    customer_id: TextQuery = None,
    reason: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
    event_id: TextQuery = None,
) -> Selection:
    return Selection(customer_id=customer_id, reason=reason, event_id=event_id)


@router.get("", response_model=Page[RefusedOut])
def list_refused_events(
    tenant: Reader,
    paged: Paged,
    wanted: Annotated[Selection, Depends(_selection)],
    status: Literal["waiting", "resolved"] = "waiting",
) -> Page[RefusedEvent]:
    """List the refused events that wait, or the resolved ones, newest first."""
    rows = paged.rows(_refusal_id)
    return Page(items=tenant.run(newest_refused, wanted, resolved=status == "resolved", **rows))


def _refusal_id(text: str) -> RefusalId:
    return RefusalId(number_of("refused event", text))


@router.delete("/{refusal_id}", response_model=RefusedOut)
def dismiss_refused_event(
    tenant: Writer,
    refusal_id: RefusalPath,
    reason: Annotated[str, Query(max_length=NOTE_CHARS_MAX, pattern=NO_NUL)] = "",
) -> RefusedEvent:
    """Take a refused event off the list, for good; it is kept, with the reason."""
    number = _refusal_id(refusal_id)

    def work(conn: Connection, business_id: BusinessId) -> RefusedEvent:
        dismiss(conn, business_id, reason, refusal_ids=[number])
        return get_refused(conn, business_id, number)

    return tenant.run(work)


@router.post("/replay", dependencies=REPEATABLE)
def replay_refused_events(tenant: Writer, wanted: ReplayRequest) -> Replayed:
    """Send refused events through the buffer again; none is charged twice."""
    selection = Selection(business_id=tenant.business_id, **wanted.model_dump())
    sent = replay(tenant.transaction, tenant.context.buffer, selection, events_max=REPLAY_MAX)
    return Replayed(replayed_count=sent, has_more=sent >= REPLAY_MAX)
