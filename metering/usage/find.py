"""Where an event is: buffered, posted or refused.

A repetition is no event of its own: whoever sends an id again finds the one that was charged.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Row

from metering.buffer.chunk import BufferedEvent, Metadata, event_key
from metering.buffer.lookup import find_buffered
from metering.buffer.stream import UsageBuffer
from metering.clock import from_wire
from metering.db import Transactions
from metering.debit import statements
from metering.errors import EventNotSeenError, NotFoundError
from metering.ids import BatchId, BusinessId, Currency, EntryId
from metering.usage.refused import RefusedEvent

EventStatus = Literal["buffered", "posted", "refused"]


class Place(NamedTuple):
    """Where an event stands in the list: by when and with which batch it was settled.

    Refused ones come before the posted ones of their batch; `within` is the refusal's number.
    """

    settled_at: datetime
    batch_id: BatchId
    within: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundEvent:
    """An event and what became of it.

    cost_minor  exact, of a posted event; `currency` None: no meter priced it
    entry_id    the debit that it is part of
    reason      of a refused event: as its dead letter has it, with `detail` as prose
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
    transaction: Transactions, buffer: UsageBuffer, business_id: BusinessId, event_id: str
) -> FoundEvent:
    """Return an event of this business, by the producer's id.

    It is looked for in Postgres, then among the newest of what is buffered, and, because it may
    have been settled meanwhile, in Postgres again. If other content came with the same id, the one
    that was charged is returned.

    Raises:
        NotFoundError: it is nowhere, or its row is older than the retention.
        EventNotSeenError: it is not settled, and more is buffered than was looked through.
        BufferUnavailableError: it is not settled, and Redis cannot be asked.

    """
    key = event_key(business_id, event_id)
    with transaction() as conn:
        if found := _settled(conn, business_id, event_id, key):
            return found
    waiting, is_cut = find_buffered(buffer, business_id, key)
    if waiting is not None:
        return of_buffered(business_id, waiting)
    with transaction() as conn:
        if found := _settled(conn, business_id, event_id, key):
            return found
    raise EventNotSeenError(event_id) if is_cut else NotFoundError("event", event_id)


def _settled(
    conn: Connection, business_id: BusinessId, event_id: str, key: str
) -> FoundEvent | None:
    batch = conn.execute(statements.BATCH_OF_KEY, {"event_key": key}).one_or_none()
    if batch is not None:
        values = {**batch._mapping, "business_id": business_id, "event_id": event_id}  # noqa: SLF001
        row = conn.execute(statements.USAGE_EVENT, values).one_or_none()
        return None if row is None else of_posted(conn, [row])[0]
    wanted = {"business_id": business_id, "event_key": key}
    refusal = conn.execute(statements.REFUSAL_OF_KEY, wanted).one_or_none()
    return None if refusal is None else of_refusal(refusal)


def of_posted(conn: Connection, rows: Sequence[Row[Any]]) -> list[FoundEvent]:
    """Return the events in rows of one business's kept usage, with the entries they are part of."""
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
    """Return the event of a dead letter; None if its bytes could not be read.

    One that was sent again is in the buffer until it is posted or refused anew.
    """
    refused = RefusedEvent(**row._mapping)  # noqa: SLF001
    event = refused.event()
    if event is None or (event_at := _moment(event.event_at)) is None:
        return None
    place = Place(refused.refused_at, refused.batch_id, refused.refusal_id)
    if refused.resolution == "replayed":
        return of_buffered(refused.business_id, event)
    return FoundEvent(
        business_id=refused.business_id,
        event_id=event.event_id,
        customer_id=event.customer_id,
        event_name=event.event_name,
        event_at=event_at,
        metadata=event.metadata,
        status="refused",
        reason=refused.reason,
        detail=refused.detail,
        place=place,
    )


def _moment(text: str) -> datetime | None:
    try:
        return from_wire(text)
    except ValueError:
        return None


def of_buffered(business_id: BusinessId, event: BufferedEvent) -> FoundEvent:
    """Return an event that has not been settled."""
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
    """Return which of some event keys have been charged."""
    rows = conn.execute(statements.CHARGED_KEYS, {"event_keys": list(keys)})
    return {row.event_key for row in rows}
