"""Dead letters: events that could not be charged, with the reason, and their replay."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from time import monotonic
from typing import Final, Literal

from sqlalchemy import Connection

from metering import db
from metering.buffer.chunk import BufferedEvent
from metering.buffer.stream import UsageBuffer
from metering.errors import MalformedChunkError
from metering.ids import BatchId, BusinessId, RefusalId
from metering.usage import statements

REPLAY_PAGE: Final = 500
MEND_PAGE: Final = 2_000
NOTE_CHARS_MAX: Final = 500

Resolution = Literal["replayed", "mended", "dismissed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedEvent:
    """A dead letter; `payload` is the event as it was buffered, or the bytes of its chunk.

    `resolution` says why it no longer waits: it was replayed, another event of its id was charged,
    or a person dismissed it for the reason in `resolution_note`.
    """

    refusal_id: RefusalId
    business_id: BusinessId
    event_id: str
    customer_id: str
    reason: str
    detail: str
    payload: object
    batch_id: BatchId
    refused_at: datetime
    resolved_at: datetime | None = None
    resolution: Resolution | None = None
    resolution_note: str | None = None

    def event(self) -> BufferedEvent | None:
        """Return the event for a replay. Returns None if its bytes cannot be read."""
        if self.reason == MalformedChunkError.reason or not isinstance(self.payload, list):
            return None
        return BufferedEvent(*self.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters; a field of None matches all."""

    business_id: BusinessId | None = None
    reason: str | None = None
    event_id: str | None = None
    customer_id: str | None = None


EVERYTHING: Final = Selection()


def refused_events(
    conn: Connection, selection: Selection, *, page: int, after: int = 0
) -> list[RefusedEvent]:
    """Return a page of waiting dead letters, oldest first, after a refusal id."""
    values = {**asdict(selection), "after": after, "page": page}
    return db.rows(RefusedEvent, conn.execute(statements.REFUSED, values))


def resolved_events(conn: Connection, selection: Selection, *, page: int) -> list[RefusedEvent]:
    """Return a page of dead letters that no longer wait, newest first."""
    values = {**asdict(selection), "page": page}
    return db.rows(RefusedEvent, conn.execute(statements.RESOLVED, values))


def newest_refused(
    conn: Connection,
    business_id: BusinessId,
    selection: Selection,
    *,
    page: int,
    offset: int = 0,
    after: RefusalId | None = None,
    resolved: bool = False,
) -> list[RefusedEvent]:
    """Return a page of a business's dead letters that wait, or no longer wait, newest first.

    Raises: NotFoundError if the business has no dead letter `after`.
    """
    last = None if after is None else get_refused(conn, business_id, after)
    values = {
        **asdict(selection),
        "business_id": business_id,
        "after_at": last and last.refused_at,
        "after_id": after,
        "page": page,
        "offset": offset,
    }
    statement = statements.RESOLVED_NEWEST if resolved else statements.REFUSED_NEWEST
    return db.rows(RefusedEvent, conn.execute(statement, values))


def get_refused(conn: Connection, business_id: BusinessId, refusal_id: RefusalId) -> RefusedEvent:
    """Return a dead letter of this business. Raises: NotFoundError if it has none of that id."""
    key = {"business_id": business_id, "refusal_id": refusal_id}
    found = conn.execute(statements.REFUSAL, key)
    return db.get_one(RefusedEvent, found, "refused event", str(refusal_id))


def dismiss(
    conn: Connection,
    business_id: BusinessId,
    note: str,
    selection: Selection = EVERYTHING,
    refusal_ids: Sequence[RefusalId] | None = None,
) -> int:
    """Take waiting dead letters off the list for good, by their ids or by the selection.

    They are kept, with the note. The balance of events does not change: they stay refused.
    """
    values = {
        **asdict(selection),
        "business_id": business_id,
        "refusal_ids": None if refusal_ids is None else list(refusal_ids),
        "note": note,
    }
    return conn.execute(statements.DISMISS, values).rowcount


def mark_mended(transaction: db.Transactions, ends_at: float) -> int:
    """Mark dead letters whose id was charged with another event; return how many.

    It walks over all that wait, a page in each transaction, until the monotonic time `ends_at`.
    """
    place: dict[str, object] = {"business_id": "", "refusal_id": 0}
    marked = 0
    while True:
        with transaction() as conn:
            values = {**place, "page": MEND_PAGE}
            rows = conn.execute(statements.WAITING_PAGE, values).mappings().all()
            ids = [row["refusal_id"] for row in rows]
            if ids:
                marked += conn.execute(statements.MARK_MENDED, {"refusal_ids": ids}).rowcount
        if len(rows) < MEND_PAGE or monotonic() >= ends_at:
            return marked
        place = dict(rows[-1])


def replay(
    transaction: db.Transactions,
    buffer: UsageBuffer,
    selection: Selection,
    *,
    events_max: int | None = None,
) -> int:
    """Send the selected dead letters through the buffer again; return how many.

    They are buffered first and marked afterwards. If the process dies in between, they are sent
    twice, and the second is a duplicate. One that is refused again before it is marked stays
    waiting. Unreadable bytes are left alone. It stops after the page that reaches `events_max`.

    Raises: BufferFullError or BufferUnavailableError; the events that were not sent still wait.
    """
    sent = 0
    for page in _pages(transaction, selection):
        readable = [(refused, event) for refused in page if (event := refused.event())]
        by_business: dict[BusinessId, list[BufferedEvent]] = defaultdict(list)
        for refused, event in readable:
            by_business[refused.business_id].append(event)
        for business_id, events in by_business.items():
            buffer.append(business_id, events)
        with transaction() as conn:
            columns = {
                "refusal_ids": [refused.refusal_id for refused, _ in readable],
                "batch_ids": [refused.batch_id for refused, _ in readable],
            }
            conn.execute(statements.MARK_REPLAYED, columns)
        sent += len(readable)
        if events_max is not None and sent >= events_max:
            break
    return sent


def _pages(transaction: db.Transactions, selection: Selection) -> Iterator[list[RefusedEvent]]:
    after = 0
    while True:
        with transaction() as conn:
            page = refused_events(conn, selection, page=REPLAY_PAGE, after=after)
        if not page:
            return
        yield page
        after = page[-1].refusal_id
