"""Prepare a batch: all that can be done before its transaction, so that locks are held briefly.

While Postgres works on one batch of a shard, a thread prepares the next. Nothing here decides:
what is prepared from a stale view is found out by the keys, the cursor and the versions of the
rate cards, which the transaction looks at again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from metering.buffer.entry import HeadChunk, readable
from metering.buffer.keys import Epoch, Shard, StreamId
from metering.buffer.stream import UsageBuffer
from metering.checkpoint import Checkpoint, no_checkpoint
from metering.db import DATABASE_ERRORS, Transactions
from metering.debit import statements
from metering.debit.batch import KeyedEvent, Refusal, key_events
from metering.debit.payers import Payers
from metering.debit.price import PricedEvent, price_events
from metering.errors import ConflictingEventError, UnpostableEventError
from metering.ids import BatchId, BusinessId, CustomerId
from metering.rate_card.cards import RateCards

# From the third attempt at a head its batch is halved each time, in case its size is the cause.
ATTEMPTS_WHOLE: Final = 2
# A chunk that is alone and was begun so often has killed every worker that touched it.
ATTEMPTS_MAX: Final = 20
# A batch of one chunk is the smallest there is.
HALVINGS_MAX: Final = 16
_NULL: Final = r"\N"


@dataclass(frozen=True, slots=True)
class Drain:
    """What draining needs, made once per process."""

    transaction: Transactions
    buffer: UsageBuffer
    cards: RateCards
    batch_events: int
    checkpoint: Checkpoint = no_checkpoint
    payers: Payers = field(default_factory=Payers)
    # How often batches of a shard were halved, because a statement took too long for Postgres.
    halvings: dict[Shard, int] = field(default_factory=dict)

    def smaller(self, shard: Shard) -> None:
        """Halve the next batches of a shard."""
        self.halvings[shard] = min(HALVINGS_MAX, self.halvings.get(shard, 0) + 1)

    def larger(self, shard: Shard) -> None:
        """Take a halving back: a batch got through."""
        if (halvings := self.halvings.pop(shard, 0)) > 1:
            self.halvings[shard] = halvings - 1


class _Read(NamedTuple):
    """What was read of a shard: chunks, the epoch they are of, the how-manieth attempt it is."""

    head: Sequence[HeadChunk]
    epoch: Epoch
    attempts: int


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A batch ready to be settled.

    `events`: by key, each once; `lines`: their rows for COPY, by key; `repeated`: further
    occurrences of a key in the batch, with the same content; `versions`: of the rate cards used.
    """

    head: Sequence[HeadChunk]
    epoch: Epoch
    batch_id: BatchId
    versions: dict[BusinessId, int]
    events: dict[str, PricedEvent]
    lines: dict[str, str]
    repeated: Sequence[KeyedEvent]
    refusals: Sequence[Refusal]
    attempts: int

    @property
    def last_stream_id(self) -> StreamId:
        """Return where this batch ends."""
        return self.head[-1].stream_id


def prepare(drain: Drain, shard: Shard, after: StreamId | None = None) -> PreparedBatch | None:
    """Read the head of a shard, or what comes `after` a batch under way; None: nothing there.

    Raises:
        NewerChunkError: the head waits for an upgrade of this process.

    """
    head = readable(shard, drain.buffer.read_head(shard, drain.batch_events, after))
    if not head:
        return None
    epoch = drain.buffer.account(shard).epoch
    attempts = drain.buffer.begin(shard, head[0].stream_id) if after is None else 1
    halvings = max(0, attempts - ATTEMPTS_WHOLE) + drain.halvings.get(shard, 0)
    del head[max(1, len(head) >> halvings) :]
    drain.checkpoint("after_read")
    keyed, unreadable = key_events(head)
    if attempts > ATTEMPTS_MAX and len(head) == 1:
        killer = UnpostableEventError(f"its chunk ended {ATTEMPTS_MAX} workers")
        unreadable += [Refusal(event, killer) for event in keyed]
        keyed = []
    read = _Read(head, epoch, attempts)
    try:
        return _price(drain, read, keyed, unreadable)
    except DATABASE_ERRORS:
        # It was not even tried; nor was what comes after a batch, whose attempt nobody counted.
        if after is None:
            drain.buffer.forget_attempts(shard)
        raise


def prepare_again(drain: Drain, batch: PreparedBatch) -> PreparedBatch:
    """Prepare the same chunks once more, because a rate card changed meanwhile."""
    keyed, unreadable = key_events(batch.head)
    return _price(drain, _Read(batch.head, batch.epoch, batch.attempts), keyed, unreadable)


def _price(
    drain: Drain, read: _Read, keyed: Sequence[KeyedEvent], unreadable: list[Refusal]
) -> PreparedBatch:
    with drain.transaction() as conn:
        batch_id = BatchId(conn.execute(statements.NEXT_BATCH).scalar_one())
        versions = drain.cards.versions(conn, {event.business_id for event in keyed})
        cards = drain.cards.current(conn, versions)
        wanted = {CustomerId(event[3]) for event in keyed}
        known = drain.payers.of(conn, versions, wanted)
    priced, refusals = price_events(cards, known, keyed)
    events, repeated, conflicts = _first_of_each(priced)
    return PreparedBatch(
        head=read.head,
        epoch=read.epoch,
        batch_id=batch_id,
        versions=versions,
        events=events,
        lines=dict(zip(events, _lines(list(events.values()), batch_id), strict=True)),
        repeated=repeated,
        refusals=[*unreadable, *refusals, *conflicts],
        attempts=read.attempts,
    )


def _first_of_each(
    priced: Sequence[PricedEvent],
) -> tuple[dict[str, PricedEvent], list[KeyedEvent], list[Refusal]]:
    """Keep the first event of each key; the others repeat it or contradict it."""
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


def _lines(events: Sequence[PricedEvent], batch_id: BatchId) -> list[str]:
    """Write events for COPY: their rows are ready; whose they are and what they cost is not."""
    return [
        f"{keyed[2]}\t{keyed[7]}\t{currency or _NULL}\t{mantissa}e-{scale}\t{batch_id}"
        for keyed, _wallet, currency, mantissa, scale, _gap in events
    ]
