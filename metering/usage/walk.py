"""Walk over kept usage, newest batch first.

Kept usage is indexed only by batch, because every event pays for a further index. So a search reads
batches: all of a business, or those that debited a customer's wallets and those with usage that
charged nobody. From each batch it reads only the matching rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Final, NamedTuple

from sqlalchemy import Connection

from metering.errors import FieldProblem, InvalidInputError, NotFoundError
from metering.ids import BatchId, BusinessId, CustomerId, EntryId, MeterId, WalletId
from metering.ledger.wallets import wallets_of
from metering.money import INT64_MAX
from metering.usage import statements
from metering.usage.find import FoundEvent, of_posted

# A walk over more batches is refused: it takes seconds, and narrower bounds help.
BATCHES_MAX: Final = 2000
_BATCHES_PER_READ_MAX: Final = 64


class _Batch(NamedTuple):
    posted_at: datetime
    batch_id: BatchId


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events; a field of None matches all. `start` and `end` are inclusive times of events.

    `entry_id` selects the events of one debit.
    """

    entry_id: EntryId | None = None
    customer_id: CustomerId | None = None
    event_name: str | None = None
    meter_id: MeterId | None = None
    start: datetime | None = None
    end: datetime | None = None

    def takes(self, event: FoundEvent) -> bool:
        """Tell whether an event matches, apart from the entry and the meter's own filter."""
        return (
            self.customer_id in (None, event.customer_id)
            and self.event_name in (None, event.event_name)
            and (self.start is None or self.start <= event.event_at)
            and (self.end is None or event.event_at <= self.end)
        )


@dataclass(frozen=True, slots=True)
class BatchWalk:
    """One walk over the settled events of a business; it continues after the event `last`."""

    conn: Connection
    business_id: BusinessId
    wanted: EventFilter
    last: FoundEvent | None
    rows_per_read: int

    def events(self) -> Iterator[FoundEvent]:
        """Yield posted events by batch, and within a batch by time, newest first.

        Raises: InvalidInputError if more than `BATCHES_MAX` batches would have to be read.
        """
        batches = _distinct(self._batches())
        size = 1
        read = 0
        while group := list(islice(batches, size)):
            read += len(group)
            if read > BATCHES_MAX:
                reason = "is too wide a range: narrow it, or name a customer"
                raise InvalidInputError(FieldProblem("start", reason))
            yield from self._of_batches(group)
            size = min(2 * size, _BATCHES_PER_READ_MAX)

    def _batches(self) -> Iterator[_Batch]:
        if self.wanted.customer_id is None:
            return self._of_business(is_uncharged=False)
        try:
            wallets = wallets_of(self.conn, self.business_id, self.wanted.customer_id).values()
        except NotFoundError:
            return iter(())
        ways = [self._of_wallet(view.wallet.wallet_id) for view in wallets]
        return merge(*ways, self._of_business(is_uncharged=True), reverse=True)

    def _bounds(self) -> dict[str, object]:
        place = None if self.last is None else self.last.place
        return {
            "business_id": self.business_id,
            "before": place and place.settled_at,
            "start": self.wanted.start,
            "end": self.wanted.end,
            "page": _BATCHES_PER_READ_MAX,
        }

    def _of_business(self, *, is_uncharged: bool) -> Iterator[_Batch]:
        values = {**self._bounds(), "uncharged": is_uncharged}
        after: _Batch | None = None
        while True:
            values["after_at"] = after and after.posted_at
            values["after_batch"] = after and after.batch_id
            rows = self.conn.execute(statements.BATCHES_OF_BUSINESS, values).all()
            for row in rows:
                after = _Batch(row.posted_at, row.batch_id)
                yield after
            if len(rows) < _BATCHES_PER_READ_MAX:
                return

    def _of_wallet(self, wallet_id: WalletId) -> Iterator[_Batch]:
        values = {**self._bounds(), "wallet_id": wallet_id, "before_version": INT64_MAX}
        while True:
            rows = self.conn.execute(statements.BATCHES_OF_WALLET, values).all()
            for row in rows:
                values["before_version"] = row.version
                yield _Batch(row.posted_at, row.batch_id)
            if len(rows) < _BATCHES_PER_READ_MAX:
                return

    def _of_batches(self, batches: Sequence[_Batch]) -> Iterator[FoundEvent]:
        values: dict[str, object] = {
            "business_id": self.business_id,
            "customer_id": self.wanted.customer_id,
            "event_name": self.wanted.event_name,
            "start": self.wanted.start,
            "end": self.wanted.end,
            "oldest": min(batch.posted_at for batch in batches),
            "newest": max(batch.posted_at for batch in batches),
            "batch_ids": [batch.batch_id for batch in batches],
            "page": self.rows_per_read,
        }
        after = self.last
        while True:
            rows = self.conn.execute(statements.USAGE_OF_BATCHES, {**values, **_after(after)}).all()
            found = of_posted(self.conn, rows)
            yield from found
            if len(found) < self.rows_per_read:
                return
            after = found[-1]


def _distinct(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """Leave out batches that were seen: one may have debited several wallets of a customer."""
    seen: set[BatchId] = set()
    for batch in batches:
        if batch.batch_id not in seen:
            seen.add(batch.batch_id)
            yield batch


def _after(event: FoundEvent | None) -> dict[str, object]:
    """Return the place after which rows are wanted; a refused event stands before its batch."""
    if event is None or event.place is None:
        return dict.fromkeys(("after_at", "after_batch", "after_event_at", "after_event_id"))
    is_posted = event.status == "posted"
    return {
        "after_at": event.place.settled_at,
        "after_batch": event.place.batch_id,
        "after_event_at": event.event_at if is_posted else "infinity",
        "after_event_id": event.event_id if is_posted else "",
    }
