"""Dead letters: events that could not be charged, their reasons, and sending them again."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row

from metering.buffer.chunk import BufferedEvent
from metering.buffer.stream import UsageBuffer
from metering.db import Transactions
from metering.debit import statements
from metering.errors import MalformedChunkError, NotFoundError
from metering.ids import BatchId, BusinessId, RefusalId

REPLAY_PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedEvent:
    """A dead letter; `payload` is the event as it was buffered, or the bytes of its chunk."""

    refusal_id: RefusalId
    business_id: BusinessId
    event_id: str
    customer_id: str
    reason: str
    detail: str
    payload: object
    batch_id: BatchId
    refused_at: datetime

    def event(self) -> BufferedEvent | None:
        """Return the event to send again; None if its bytes could not be read."""
        if self.reason == MalformedChunkError.reason or not isinstance(self.payload, list):
            return None
        return BufferedEvent(*self.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters: all filters are optional."""

    business_id: BusinessId | None = None
    reason: str | None = None
    event_id: str | None = None
    customer_id: str | None = None


def refused_events(
    conn: Connection, selection: Selection, *, page: int, after: int = 0
) -> list[RefusedEvent]:
    """Return a page of waiting dead letters, oldest first, after a refusal id."""
    rows = conn.execute(
        statements.REFUSED,
        {
            "business_id": selection.business_id,
            "reason": selection.reason,
            "event_id": selection.event_id,
            "customer_id": selection.customer_id,
            "after": after,
            "page": page,
        },
    )
    return [RefusedEvent(**row._mapping) for row in rows]  # noqa: SLF001


def newest_refused(
    conn: Connection,
    business_id: BusinessId,
    selection: Selection,
    *,
    page: int,
    offset: int = 0,
    after: RefusalId | None = None,
) -> list[RefusedEvent]:
    """Return a page of a business's waiting dead letters, newest first.

    Raises:
        NotFoundError: the business has no dead letter `after`.

    """
    after_at: datetime | None = None
    if after is not None:
        key = {"business_id": business_id, "refusal_id": after}
        after_at = conn.execute(statements.REFUSED_AT, key).scalar_one_or_none()
        if after_at is None:
            raise NotFoundError("refused event", str(after))
    rows = conn.execute(
        statements.REFUSED_NEWEST,
        {
            "business_id": business_id,
            "customer_id": selection.customer_id,
            "reason": selection.reason,
            "event_id": selection.event_id,
            "after_at": after_at,
            "after_id": after,
            "page": page,
            "offset": offset,
        },
    )
    return [_refused(row) for row in rows]


def _refused(row: Row[Any]) -> RefusedEvent:
    columns = dict(row._mapping)  # noqa: SLF001
    del columns["replayed_at"]
    return RefusedEvent(**columns)


def replay(
    transaction: Transactions,
    buffer: UsageBuffer,
    selection: Selection,
    *,
    events_max: int | None = None,
) -> int:
    """Send the selected dead letters through the buffer again; return how many.

    They are buffered first and marked after: killed in between, they are sent twice, and the
    second is a duplicate. One that is refused again before it is marked stays waiting. Bytes that
    cannot be read stay where they are. With `events_max`, it stops at the page that reaches it.

    Raises:
        BufferFullError, BufferUnavailableError: what was not sent is still waiting.

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


def _pages(transaction: Transactions, selection: Selection) -> Iterator[list[RefusedEvent]]:
    after = 0
    while True:
        with transaction() as conn:
            page = refused_events(conn, selection, page=REPLAY_PAGE, after=after)
        if not page:
            return
        yield page
        after = page[-1].refusal_id
