"""Prepare a batch: all the work that is possible before its transaction, to hold locks briefly.

A thread does this while Postgres works on the batch before. Nothing is decided here. If the view
was stale, the transaction finds out: it checks the keys, the cursor and the card versions again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from metering.buffer.entry import HeadChunk, readable
from metering.buffer.keys import Epoch, Shard, StreamId
from metering.db import DATABASE_ERRORS
from metering.debit import statements
from metering.debit.batch import KeyedEvent, Refusal, key_events
from metering.debit.price import PricedEvent, price_events
from metering.debit.resources import Drain
from metering.errors import ConflictingEventError, UnpostableEventError
from metering.ids import BatchId, BusinessId, CustomerId

# From the third attempt at a head, its batch is halved each time, in case its size is the cause.
ATTEMPTS_WHOLE: Final = 2
# After so many attempts at one chunk alone, it has killed every worker that read it.
ATTEMPTS_MAX: Final = 20
_NULL: Final = r"\N"


@dataclass(frozen=True, slots=True)
class Head:
    """Chunks of a shard, their epoch, and the number of this attempt at them."""

    head: Sequence[HeadChunk]
    epoch: Epoch
    attempts: int

    @property
    def last_stream_id(self) -> StreamId:
        """Return where this batch ends."""
        return self.head[-1].stream_id


@dataclass(frozen=True, slots=True)
class PreparedBatch(Head):
    """A batch that can be settled.

    versions  of the rate cards that priced it
    events    by key, each once
    lines     their rows for COPY, by key
    repeated  further events with a key of the batch and the same content
    """

    batch_id: BatchId
    versions: dict[BusinessId, int]
    events: dict[str, PricedEvent]
    lines: dict[str, str]
    repeated: Sequence[KeyedEvent]
    refusals: Sequence[Refusal]


def prepare(drain: Drain, shard: Shard, after: StreamId | None = None) -> PreparedBatch | None:
    """Read and price the head of a shard, or the chunks `after` a batch that is being settled.

    Returns None if there are no chunks. Raises: NewerChunkError if only a newer release can read
    the first of them.
    """
    head = readable(shard, drain.buffer.read_head(shard, drain.batch_events, after))
    if not head:
        return None
    epoch = drain.buffer.counters(shard).epoch
    attempts = drain.buffer.begin(shard, head[0].stream_id) if after is None else 1
    halvings = max(0, attempts - ATTEMPTS_WHOLE) + drain.halvings.get(shard, 0)
    del head[max(1, len(head) >> halvings) :]
    drain.checkpoint("after_read")
    try:
        return price_head(drain, Head(head, epoch, attempts))
    except DATABASE_ERRORS:
        # The head was not tried. Chunks `after` another batch have no attempt to forget.
        if after is None:
            drain.buffer.forget_attempts(shard)
        raise


def price_head(drain: Drain, head: Head) -> PreparedBatch:
    """Price chunks. It is done again if a rate card changes before they are settled."""
    keyed, unreadable = key_events(head.head)
    if head.attempts > ATTEMPTS_MAX and len(head.head) == 1:
        fatal = UnpostableEventError(f"its chunk ended {ATTEMPTS_MAX} workers")
        unreadable += [Refusal(event, fatal) for event in keyed]
        keyed = []
    with drain.transaction() as conn:
        batch_id = BatchId(conn.execute(statements.NEXT_BATCH).scalar_one())
        versions = drain.cards.versions(conn, {event.business_id for event in keyed})
        cards = drain.cards.current(conn, versions)
        payers = drain.payers.of(conn, versions, {CustomerId(event[3]) for event in keyed})
    priced, refusals = price_events(cards, payers, keyed)
    events, repeated, conflicts = _first_of_each(priced)
    return PreparedBatch(
        head=head.head,
        epoch=head.epoch,
        attempts=head.attempts,
        batch_id=batch_id,
        versions=versions,
        events=events,
        lines=dict(zip(events, usage_lines(list(events.values()), batch_id), strict=True)),
        repeated=repeated,
        refusals=[*unreadable, *refusals, *conflicts],
    )


def _first_of_each(
    priced: Sequence[PricedEvent],
) -> tuple[dict[str, PricedEvent], list[KeyedEvent], list[Refusal]]:
    """Return the first event of each key, the repetitions, and the conflicts."""
    events: dict[str, PricedEvent] = {}
    repeated: list[KeyedEvent] = []
    conflicts: list[Refusal] = []
    for event in priced:
        keyed = event[0]
        first = events.setdefault(keyed[0], event)
        if first is event:
            continue
        if first.keyed.digest == keyed.digest:
            repeated.append(keyed)
        else:
            conflicts.append(Refusal(keyed, ConflictingEventError()))
    return events, repeated, conflicts


def usage_lines(events: Sequence[PricedEvent], batch_id: BatchId) -> list[str]:
    """Return a line for COPY for each event, with the columns `statements.USAGE_COLUMNS`.

    The buffered row already has most of them in the right form.
    """
    return [
        f"{keyed[2]}\t{keyed[7]}\t{currency or _NULL}\t{mantissa}e-{scale}\t{batch_id}"
        for keyed, _wallet, currency, mantissa, scale, _gap in events
    ]
