"""Where an event is: buffered, posted or refused.

A repetition is no event of its own. A search for its id finds the event that was charged.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Row

from metering import db
from metering.buffer.chunk import BufferedEvent, Metadata, event_key
from metering.buffer.lookup import find_buffered
from metering.buffer.stream import UsageBuffer
from metering.clock import from_wire
from metering.debit.statements import CHARGED_KEYS
from metering.errors import EventNotSeenError, NotFoundError
from metering.ids import BatchId, BusinessId, Currency, EntryId
from metering.usage import statements
from metering.usage.refused import RefusedEvent

EventStatus = Literal["buffered", "posted", "refused"]


class Place(NamedTuple):
    """The place of a settled event in the list: the time and batch that settled it.

    Refused events come before the posted events of their batch; `within` is the refusal's number.
    """

    settled_at: datetime
    batch_id: BatchId
    within: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundEvent:
    """An event, and how it ended.

    cost_minor  exact, of a posted event; without a `currency` no meter priced it
    entry_id    the debit that it is part of
    reason      why it was refused, as its dead letter says; `detail` in prose
    place       None while it is buffered
    """

    business_id: BusinessId
    event_id: str
    customer_id: str
    event_name: str
    event_at: datetime
    metadata: Metadata
    status: EventStatus
    cost_minor: Decimal | None = None
    currency: Currency | None = None
    entry_id: EntryId | None = None
    reason: str | None = None
    detail: str | None = None
    place: Place | None = None


def find_event(
    transaction: db.Transactions, buffer: UsageBuffer, business_id: BusinessId, event_id: str
) -> FoundEvent:
    """Return an event of this business, by the producer's id.

    It searches Postgres, then the newest part of the buffer, then Postgres again, because the event
    may have been settled meanwhile. If the id came with other content too, it returns the event
    that was charged.

    Raises:
        NotFoundError: it is nowhere, or its row is older than the retention.
        EventNotSeenError: it is not settled, and only a part of the buffer was searched.
        BufferUnavailableError: it is not settled, and Redis is away.

    """
    key = event_key(business_id, event_id)
    with transaction() as conn:
        if found := _settled(conn, business_id, event_id, key):
            return found
    buffered, is_cut = find_buffered(buffer, business_id, key)
    if buffered is not None:
        return of_buffered(business_id, buffered)
    with transaction() as conn:
        if found := _settled(conn, business_id, event_id, key):
            return found
    raise EventNotSeenError(event_id) if is_cut else NotFoundError("event", event_id)


def _settled(
    conn: Connection, business_id: BusinessId, event_id: str, key: str
) -> FoundEvent | None:
    batch = conn.execute(statements.BATCH_OF_KEY, {"event_key": key}).mappings().one_or_none()
    if batch is not None:
        values = {**batch, "business_id": business_id, "event_id": event_id}
        row = conn.execute(statements.USAGE_EVENT, values).one_or_none()
        return None if row is None else of_posted(conn, [row])[0]
    wanted = {"business_id": business_id, "event_key": key}
    refusal = conn.execute(statements.REFUSAL_OF_KEY, wanted).one_or_none()
    return None if refusal is None else of_refusal(refusal)


def of_posted(conn: Connection, rows: Sequence[Row[Any]]) -> list[FoundEvent]:
    """Return the events of rows of one business's kept usage, with the entries of their debits."""
    entries = _entries(conn, rows)
    return [
        FoundEvent(
            business_id=row.business_id,
            event_id=row.event_id,
            customer_id=row.customer_id,
            event_name=row.event_name,
            event_at=row.event_at,
            metadata=row.metadata,
            status="posted",
            cost_minor=row.cost_minor,
            currency=row.currency,
            entry_id=entries.get((row.batch_id, row.customer_id, row.currency)),
            place=Place(row.posted_at, row.batch_id, 0),
        )
        for row in rows
    ]


def _entries(
    conn: Connection, rows: Sequence[Row[Any]]
) -> dict[tuple[BatchId, str, Currency], EntryId]:
    if not rows:
        return {}
    values = {
        "business_id": rows[0].business_id,
        "batch_ids": sorted({row.batch_id for row in rows}),
        "customer_ids": sorted({row.customer_id for row in rows}),
    }
    found = conn.execute(statements.ENTRIES_OF_BATCHES, values)
    return {(row.batch_id, row.customer_id, row.currency): row.entry_id for row in found}


def of_refusal(row: Row[Any]) -> FoundEvent | None:
    """Return the event of a dead letter. Returns None if its bytes cannot be read.

    A replayed event is in the buffer until it is posted or refused again.
    """
    refused = db.row(RefusedEvent, row)
    event = refused.event()
    if event is None:
        return None
    try:
        found = of_buffered(refused.business_id, event)
    except ValueError:  # its time cannot be read
        return None
    if refused.resolution == "replayed":
        return found
    return replace(
        found,
        status="refused",
        reason=refused.reason,
        detail=refused.detail,
        place=Place(refused.refused_at, refused.batch_id, refused.refusal_id),
    )


def of_buffered(business_id: BusinessId, event: BufferedEvent) -> FoundEvent:
    """Return an event that has not been settled. Raises: ValueError if its time cannot be read."""
    return FoundEvent(
        business_id=business_id,
        event_id=event.event_id,
        customer_id=event.customer_id,
        event_name=event.event_name,
        event_at=from_wire(event.event_at),
        metadata=event.metadata,
        status="buffered",
    )


def charged_keys(conn: Connection, keys: Iterable[str]) -> set[str]:
    """Return those event keys that have been charged."""
    rows = conn.execute(CHARGED_KEYS, {"event_keys": list(keys)})
    return {row.event_key for row in rows}
