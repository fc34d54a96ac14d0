"""From an entry to its events: the usage that a debit is made of.

An entry names its batch and its wallet, and so do the rows of kept usage; nothing else links them.
A batch that was split around a bad event may have debited a wallet more than once; those entries
share their events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

from sqlalchemy import Connection

from metering.ids import BatchId, EntryId
from metering.ledger.entry import Entry
from metering.rate_card.lines import Line, line_card, total
from metering.usage import statements
from metering.usage.find import FoundEvent, of_posted

# Why lines may not add up: a meter that is taken back into use loses the time when it was
# archived, and a change within milliseconds of a batch may count on the other side of it.
NOTE: Final = (
    "the lines do not add up to the cost that was charged: the meters and prices of the time of"
    " the debit are not fully known"
)


@dataclass(frozen=True, slots=True)
class ExplainedEvent:
    """An event and the lines that make its cost, by the meters and prices of its batch's time."""

    event: FoundEvent
    lines: Sequence[Line]

    @property
    def adds_up(self) -> bool:
        """Tell whether the lines make the cost."""
        return total(self.lines) == self.event.cost_minor

    @property
    def note(self) -> str | None:
        """Return the reason why the lines do not make the cost. Returns None if they do."""
        return None if self.adds_up else NOTE


def events_of_entry(
    conn: Connection, entry: Entry, last: FoundEvent | None = None, rows_per_read: int = 1000
) -> Iterator[FoundEvent]:
    """Yield the events of a debit for usage, newest first, after `last`.

    An entry of another kind has none. Events older than the retention are missing;
    `entry.event_count` says how many there were.
    """
    if entry.batch_id is None:
        return
    values = {
        "batch_id": entry.batch_id,
        "business_id": entry.business_id,
        "customer_id": entry.customer_id,
        "currency": entry.currency,
        "posted_at": _batch_time(conn, entry.batch_id),
        "page": rows_per_read,
    }
    while True:
        after = {
            "after_at": None if last is None else last.event_at,
            "after_id": None if last is None else last.event_id,
        }
        found = of_posted(conn, conn.execute(statements.USAGE_OF_ENTRY, {**values, **after}).all())
        yield from found
        if len(found) < rows_per_read:
            return
        last = found[-1]


def _batch_time(conn: Connection, batch_id: BatchId) -> datetime:
    """Return when a batch began. It compared its rate cards with the store at that moment."""
    moment: datetime = conn.execute(statements.BATCH_TIME, {"batch_id": batch_id}).scalar_one()
    return moment


def explain_events(
    conn: Connection,
    entry: Entry,
    *,
    page: int,
    offset: int = 0,
    last: FoundEvent | None = None,
) -> list[ExplainedEvent]:
    """Return up to `page` events of an entry, newest first, each with its lines."""
    found = list(islice(events_of_entry(conn, entry, last, offset + page), offset, offset + page))
    if not found or entry.batch_id is None:
        return []
    card = line_card(conn, entry.business_id, _batch_time(conn, entry.batch_id))
    return [
        ExplainedEvent(
            event, card.lines(event.event_name, event.event_at, event.metadata, entry.currency)
        )
        for event in found
    ]


def sharing(conn: Connection, entry: Entry) -> list[EntryId]:
    """Return the other entries that share their events with this one. Most entries have none."""
    if entry.batch_id is None:
        return []
    values = {"batch_id": entry.batch_id, "wallet_id": entry.wallet_id}
    rows = conn.execute(statements.ENTRIES_OF_BATCH, values)
    return [row.entry_id for row in rows if row.entry_id != entry.entry_id]
