"""Refused events: why each waits, and sending them again once the cause is gone."""

from datetime import datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from api.auth import Reader, Writer
from api.context import REPEATABLE, Scoped
from api.paging import Page, Paged
from metering.errors import NotFoundError
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

# Sent by one call: more takes longer than a client waits.
REPLAY_MAX: Final = 5000
ID_DIGITS_MAX: Final = 18

RefusalPath = Annotated[str, Path(min_length=1, max_length=64)]


class UsageOut(BaseModel):
    """The event as it was sent."""

    event_id: str
    customer_id: str
    event_name: str
    timestamp: str
    metadata: dict[str, bool | int | float | str]


class RefusedOut(BaseModel):
    """A usage event that could not be charged: `reason` for programs, `detail` for people.

    `event` is null where the buffered bytes could not be read; those are not sent again.
    `resolution`: why it waits no more, if so.
    """

    id: str
    business_id: BusinessId
    event_id: str
    customer_id: str
    reason: str
    detail: str
    refused_at: datetime
    event: UsageOut | None
    resolved_at: datetime | None
    resolution: Resolution | None
    resolution_note: str | None


class ReplayRequest(BaseModel):
    """Which refused events are sent again: what is left out does not matter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Filled255 | None = None
    event_id: Filled255 | None = None
    customer_id: Filled255 | None = None


class Replayed(BaseModel):
    """How many events were sent; `has_more`: as many as one call sends, so call again."""

    replayed_count: int
    has_more: bool


def _out(refused: RefusedEvent) -> RefusedOut:
    event = refused.event()
    return RefusedOut(
        id=str(refused.refusal_id),
        business_id=refused.business_id,
        event_id=refused.event_id,
        customer_id=refused.customer_id,
        reason=refused.reason,
        detail=refused.detail,
        refused_at=refused.refused_at,
        resolved_at=refused.resolved_at,
        resolution=refused.resolution,
        resolution_note=refused.resolution_note,
        event=None
        if event is None
        else UsageOut(
            event_id=event.event_id,
            customer_id=event.customer_id,
            event_name=event.event_name,
            timestamp=event.event_at,
            metadata=event.metadata,
        ),
    )


async def _selection(
    customer_id: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    reason: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
    event_id: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
) -> Selection:
    return Selection(customer_id=customer_id, reason=reason, event_id=event_id)


@router.get("")
def list_refused_events(
    caller: Reader,
    scope: Scoped,
    paged: Paged,
    wanted: Annotated[Selection, Depends(_selection)],
    status: Literal["waiting", "resolved"] = "waiting",
) -> Page[RefusedOut]:
    """List refused events that wait, or that wait no more, newest first."""
    after = None if paged.after is None else _refusal_id(paged.after)
    found = scope.run(
        caller.business_id,
        lambda conn: newest_refused(
            conn,
            caller.business_id,
            wanted,
            page=paged.size,
            offset=paged.offset,
            after=after,
            resolved=status == "resolved",
        ),
    )
    return Page(items=[_out(refused) for refused in found])


def _refusal_id(text: str) -> RefusalId:
    if not (text.isascii() and text.isdigit() and len(text) <= ID_DIGITS_MAX):
        raise NotFoundError("refused event", text)
    return RefusalId(int(text))


@router.delete("/{refusal_id}")
def dismiss_refused_event(
    caller: Writer,
    scope: Scoped,
    refusal_id: RefusalPath,
    reason: Annotated[str, Query(max_length=NOTE_CHARS_MAX, pattern=NO_NUL)] = "",
) -> RefusedOut:
    """Take a refused event off the list, for good; it is kept, with the reason."""
    number = _refusal_id(refusal_id)

    def work(conn: Connection) -> RefusedEvent:
        dismiss(conn, caller.business_id, reason, refusal_ids=[number])
        return get_refused(conn, caller.business_id, number)

    return _out(scope.run(caller.business_id, work))


@router.post("/replay", dependencies=REPEATABLE)
def replay_refused_events(caller: Writer, scope: Scoped, wanted: ReplayRequest) -> Replayed:
    """Send refused events through the buffer again; none is charged twice."""
    selection = Selection(
        business_id=caller.business_id,
        reason=wanted.reason,
        event_id=wanted.event_id,
        customer_id=wanted.customer_id,
    )
    sent = replay(
        lambda: scope.sessions.tenant(caller.business_id),
        scope.buffer,
        selection,
        events_max=REPLAY_MAX,
    )
    return Replayed(replayed_count=sent, has_more=sent >= REPLAY_MAX)
