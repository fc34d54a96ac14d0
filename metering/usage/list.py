"""The events of a business, newest first: buffered events, then settled ones."""

from collections.abc import Iterator
from dataclasses import replace
from heapq import merge
from itertools import chain, dropwhile, islice
from typing import Final

from sqlalchemy import Connection

from metering.buffer.chunk import BufferedEvent
from metering.buffer.lookup import newest_buffered
from metering.buffer.stream import UsageBuffer
from metering.db import Transactions
from metering.ids import BusinessId, CustomerId
from metering.ledger.history import get_entry
from metering.rate_card.catalogue import get_meter
from metering.rate_card.filter import Matches, compile_filter
from metering.usage import statements
from metering.usage.entry_usage import events_of_entry
from metering.usage.find import FoundEvent, Place, charged_keys, find_event, of_buffered, of_refusal
from metering.usage.walk import BatchWalk, EventFilter

# Only the newest of the buffered events are listed.
BUFFERED_MAX: Final = 1000
ROWS_PER_READ: Final = 1000


def list_events(
    transaction: Transactions,
    buffer: UsageBuffer,
    business_id: BusinessId,
    wanted: EventFilter,
    *,
    page: int,
    offset: int = 0,
    after: str | None = None,
) -> list[FoundEvent]:
    """Return up to `page` events, newest first, past `offset` of them or after the event `after`.

    Buffered events come first, then settled ones by the time of their settlement. Waiting dead
    letters are included, except those whose bytes cannot be read.

    Raises:
        NotFoundError: the business has no such meter or entry, or no event `after`.
        InvalidInputError: too much would have to be read; the filter must be narrower.
        BufferUnavailableError: Redis is away.

    """
    last = None if after is None else find_event(transaction, buffer, business_id, after)
    waiting = _buffered(buffer, business_id, wanted, last)
    with transaction() as conn:
        # An event that was charged meanwhile, or a repetition, is listed once: as posted.
        charged = charged_keys(conn, [key for key, _ in waiting])
        buffered = [of_buffered(business_id, event) for key, event in waiting if key not in charged]
        wanted, matches = _with_meter(conn, business_id, wanted)
        reach = offset + page if matches is None else ROWS_PER_READ
        settled = _settled(conn, business_id, wanted, last, min(reach, ROWS_PER_READ))
        events = filter(wanted.takes, chain(buffered, settled))
        taken = events if matches is None else (e for e in events if matches(e.metadata))
        return list(islice(taken, offset, offset + page))


def _buffered(
    buffer: UsageBuffer, business_id: BusinessId, wanted: EventFilter, last: FoundEvent | None
) -> list[tuple[str, BufferedEvent]]:
    """Return the buffered events after the event `last`, with their keys."""
    if wanted.entry_id is not None or (last is not None and last.place is not None):
        return []
    waiting = newest_buffered(buffer, business_id, wanted.customer_id, BUFFERED_MAX)
    if last is None:
        return waiting
    following = dropwhile(lambda held: held[1].event_id != last.event_id, waiting)
    return list(following)[1:]


def _with_meter(
    conn: Connection, business_id: BusinessId, wanted: EventFilter
) -> tuple[EventFilter, Matches | None]:
    """Return the filter with the meter's event name, and the meter's own filter."""
    if wanted.meter_id is None:
        return wanted, None
    meter = get_meter(conn, business_id, wanted.meter_id)
    matches = None if meter.filter is None else compile_filter(meter.filter)
    if wanted.event_name not in (None, meter.event_name):
        return wanted, lambda _metadata: False
    return replace(wanted, event_name=meter.event_name), matches


def _settled(
    conn: Connection,
    business_id: BusinessId,
    wanted: EventFilter,
    last: FoundEvent | None,
    rows_per_read: int,
) -> Iterator[FoundEvent]:
    if wanted.entry_id is not None:
        entry = get_entry(conn, business_id, wanted.entry_id)
        return events_of_entry(conn, entry, last, rows_per_read)
    walk = BatchWalk(conn, business_id, wanted, last, rows_per_read)
    place = None if last is None else last.place
    refused = _refused(conn, business_id, wanted.customer_id, place)
    return merge(walk.events(), refused, key=lambda event: event.place or (), reverse=True)


def _refused(
    conn: Connection, business_id: BusinessId, customer_id: CustomerId | None, last: Place | None
) -> Iterator[FoundEvent]:
    values: dict[str, object] = {
        "business_id": business_id,
        "customer_id": customer_id,
        "reason": None,
        "event_id": None,
        "page": ROWS_PER_READ,
        "offset": 0,
    }
    after_at, after_id = (None, 0) if last is None else (last.settled_at, last.within)
    while True:
        values |= {"after_at": after_at, "after_id": after_id}
        rows = conn.execute(statements.REFUSED_NEWEST, values).all()
        yield from filter(None, map(of_refusal, rows))
        if len(rows) < ROWS_PER_READ:
            return
        after_at, after_id = rows[-1].refused_at, rows[-1].refusal_id
