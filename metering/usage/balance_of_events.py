"""The balance of events: in = posted + duplicate + refused + buffered, from both stores.

Redis says how many events each shard accepted, Postgres where they ended. Postgres is read first:
events that are drained between the two reads then count as buffered, never as missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import sleep
from typing import Final

from metering import db
from metering.buffer.keys import Epoch, Shard
from metering.buffer.stream import ShardCounters, UsageBuffer
from metering.debit.cursor import Cursor, read_cursors
from metering.debit.invariants import loss_of
from metering.debit.write import Outcome
from metering.invariants import Fault
from metering.usage import statements

# A drain that moves between the two reads can look like a gap. The next look shows none.
LOOKS_MAX: Final = 5
LOOK_AGAIN_S: Final = 0.3
HEAD_EVENTS: Final = 10_000

INVARIANT: Final = "in = posted + duplicate + refused + buffered"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEvents:
    """One shard in one life of its stream; counts of events.

    accepted  by Redis, with those that a rewound Redis forgot
    settled   posted, duplicate or refused
    lost      accepted, but gone from Redis before they were read
    live      whether this is the stream's present life
    """

    shard: Shard
    epoch: Epoch
    accepted: int
    settled: int
    buffered: int
    lost: int
    rewound: int
    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBalance:
    """All shards together; counts of events."""

    accepted: int
    posted: int
    duplicate: int
    refused: int
    buffered: int
    lost: int
    rewound: int
    shards: Sequence[ShardEvents]

    @property
    def difference(self) -> int:
        """Accepted events that are in no other count. 0 if all is well."""
        ended = self.posted + self.duplicate + self.refused
        return self.accepted - ended - self.buffered - self.lost

    def faults(self) -> Iterator[Fault]:
        """Yield a fault for the difference, and one for each shard that lost events."""
        if self.difference:
            yield Fault(invariant=INVARIANT, detail=f"{self.difference} events ended nowhere")
        for shard in self.shards:
            if shard.lost:
                yield loss_of(shard.shard, shard.epoch, shard.lost)


def read_balance(snapshot: db.Transactions, buffer: UsageBuffer) -> EventBalance:
    """Read both stores, and look again while events seem missing.

    Raises: RedisError if Redis is away.
    """
    for _ in range(LOOKS_MAX - 1):
        balance = _look(snapshot, buffer)
        if not balance.difference and not balance.lost:
            return balance
        sleep(LOOK_AGAIN_S)
    return _look(snapshot, buffer)


def _look(snapshot: db.Transactions, buffer: UsageBuffer) -> EventBalance:
    with snapshot() as conn:
        totals = db.row(Outcome, conn.execute(statements.TOTALS).one())
        cursors = read_cursors(conn)
    # Redis is read after the transaction, because it can be slow or away.
    shards = list(_shards(buffer, cursors))
    return EventBalance(
        posted=totals.posted,
        duplicate=totals.duplicate,
        refused=totals.refused,
        accepted=sum(shard.accepted for shard in shards),
        buffered=sum(shard.buffered for shard in shards),
        lost=sum(shard.lost for shard in shards),
        rewound=sum(shard.rewound for shard in shards),
        shards=shards,
    )


def _shards(buffer: UsageBuffer, cursors: Sequence[Cursor]) -> Iterator[ShardEvents]:
    ended = {(cursor.shard, cursor.epoch): cursor for cursor in cursors}
    counted = {shard: buffer.counters(shard) for shard in buffer.shards}
    for shard, counters in counted.items():
        cursor = ended.pop((shard, counters.epoch), None)
        if cursor is not None or counters.accepted:
            yield _live(buffer, cursor or Cursor(shard=shard, epoch=counters.epoch), counters)
    # Redis no longer has these streams: only the events that were read are known.
    for cursor in ended.values():
        yield _of_cursor(cursor, live=False)


def _live(buffer: UsageBuffer, cursor: Cursor, counters: ShardCounters) -> ShardEvents:
    """Return the events of a present stream. Redis behind the cursor has forgotten settled ones."""
    forgotten = max(0, cursor.accepted_count - counters.accepted)
    unread = max(0, counters.accepted - cursor.accepted_count)
    gone = min(unread, _gap_before_head(buffer, cursor)) if unread else 0
    return _of_cursor(cursor, live=True, buffered=unread - gone, gone=gone, forgotten=forgotten)


def _of_cursor(
    cursor: Cursor, *, live: bool, buffered: int = 0, gone: int = 0, forgotten: int = 0
) -> ShardEvents:
    return ShardEvents(
        shard=cursor.shard,
        epoch=cursor.epoch,
        accepted=cursor.accepted_count + cursor.rewound_count + buffered + gone,
        settled=cursor.settled_count,
        buffered=buffered,
        lost=cursor.lost_count + gone,
        rewound=cursor.rewound_count + forgotten,
        live=live,
    )


def _gap_before_head(buffer: UsageBuffer, cursor: Cursor) -> int:
    """Return how many events are missing before the first unread chunk.

    A gap further behind shows when the drain gets there.
    """
    head = buffer.read_head(cursor.shard, HEAD_EVENTS)
    for chunk in head:
        if chunk.accepted_total > cursor.accepted_count:
            return cursor.after(chunk).lost_count - cursor.lost_count
    return 0 if head else buffer.counters(cursor.shard).accepted - cursor.accepted_count
