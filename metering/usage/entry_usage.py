"""From an entry to its events: what a debit for usage is made of.

An entry names its batch and its wallet, and so do the rows of kept usage; nothing more is stored.
A batch that was split around a bad event may have debited a wallet more than once: those entries
share their events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from sqlalchemy import Connection

from metering.debit import statements
from metering.ids import EntryId
from metering.ledger.entry import Entry
from metering.rate_card.lines import Line, line_card, total
from metering.usage.find import FoundEvent, of_posted


@dataclass(frozen=True, slots=True)
class ExplainedEvent:
    """An event and the lines that make its cost.

    `adds_up`: the lines add up to what was charged; else a meter or a price has changed since.
    """

    event: FoundEvent
    lines: Sequence[Line]

    @property
    def adds_up(self) -> bool:
        """Tell whether the lines make the cost."""
        return total(self.lines) == self.event.cost_minor


def events_of_entry(
    conn: Connection, entry: Entry, last: FoundEvent | None = None, rows_per_read: int = 1000
) -> Iterator[FoundEvent]:
    """Give the events of a debit for usage, newest first, after `last`; none of another entry.

    Those that are older than the retention are gone: `entry.event_count` tells how many there were.
    """
    posted_at = _posted_at(conn, entry)
    while posted_at is not None:
        values = {
            "business_id": entry.business_id,
            "customer_id": entry.customer_id,
            "currency": entry.currency,
            "batch_id": entry.batch_id,
            "posted_at": posted_at,
            "after_at": None if last is None else last.event_at,
            "after_id": None if last is None else last.event_id,
            "page": rows_per_read,
        }
        found = of_posted(conn, conn.execute(statements.USAGE_OF_ENTRY, values).all())
        yield from found
        if len(found) < rows_per_read:
            return
        last = found[-1]


def _posted_at(conn: Connection, entry: Entry) -> datetime | None:
    if entry.batch_id is None:
        return None
    made: datetime = conn.execute(statements.BATCH_TIME, {"batch_id": entry.batch_id}).scalar_one()
    return made


def explain_events(
    conn: Connection,
    entry: Entry,
    *,
    page: int,
    offset: int = 0,
    last: FoundEvent | None = None,
) -> list[ExplainedEvent]:
    """Return up to `page` events of an entry, newest first, with the lines of each."""
    found = list(islice(events_of_entry(conn, entry, last, offset + page), offset, offset + page))
    if not found:
        return []
    card = line_card(conn, entry.business_id)
    return [
        ExplainedEvent(
            event, card.lines(event.event_name, event.event_at, event.metadata, entry.currency)
        )
        for event in found
    ]


def sharing(conn: Connection, entry: Entry) -> list[EntryId]:
    """Return the other entries that share their events with this one; most have none."""
    if entry.batch_id is None:
        return []
    values = {"batch_id": entry.batch_id, "wallet_id": entry.wallet_id}
    rows = conn.execute(statements.ENTRIES_OF_BATCH, values)
    return [row.entry_id for row in rows if row.entry_id != entry.entry_id]
