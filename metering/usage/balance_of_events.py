"""The account of events: in = posted + duplicate + refused + buffered, from both stores.

Redis says how many events each shard accepted, Postgres where they ended. Postgres is read first:
what is drained between the two reads then counts as still buffered, never as missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import sleep
from typing import Final

from sqlalchemy import Connection

from metering.buffer.keys import Epoch, Shard
from metering.buffer.stream import Account, UsageBuffer
from metering.db import Transactions
from metering.debit import statements
from metering.debit.cursor import Cursor, read_cursors
from metering.ledger.verify import Fault, loss_of

# A drain that moves between the two reads can look like a gap, and is gone at the next look.
LOOKS_MAX: Final = 5
LOOK_AGAIN_S: Final = 0.3
HEAD_EVENTS: Final = 10_000

INVARIANT: Final = "in = posted + duplicate + refused + buffered"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEvents:
    """One shard in one life of its stream; counts of events.

    accepted  taken by Redis, with what a rewound Redis forgot again
    settled   posted, duplicate or refused
    lost      accepted, then gone from Redis before they were read
    live      this is the stream's present life
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
class EventsAccount:
    """All shards together. `accepted` - the other five = 0."""

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
        """Events of which nobody knows where they ended."""
        ended = self.posted + self.duplicate + self.refused
        return self.accepted - ended - self.buffered - self.lost


def read_account(snapshot: Transactions, buffer: UsageBuffer) -> EventsAccount:
    """Read both stores; look again while something seems missing.

    Raises:
        RedisError: Redis is away.

    """
    for _ in range(LOOKS_MAX - 1):
        account = _look(snapshot, buffer)
        if not account.difference and not account.lost:
            return account
        sleep(LOOK_AGAIN_S)
    return _look(snapshot, buffer)


def account_faults(account: EventsAccount) -> Iterator[Fault]:
    """Yield what does not add up, shard by shard."""
    if account.difference:
        yield Fault(invariant=INVARIANT, detail=f"{account.difference} events ended nowhere")
    for shard in account.shards:
        if shard.lost:
            yield loss_of(shard.shard, shard.epoch, shard.lost)


def _look(snapshot: Transactions, buffer: UsageBuffer) -> EventsAccount:
    with snapshot() as conn:
        totals = _totals(conn)
        cursors = read_cursors(conn)
    # Redis is asked after the transaction: it can be slow, or away.
    shards = list(_shards(buffer, cursors))
    return EventsAccount(
        **totals,
        accepted=sum(shard.accepted for shard in shards),
        buffered=sum(shard.buffered for shard in shards),
        lost=sum(shard.lost for shard in shards),
        rewound=sum(shard.rewound for shard in shards),
        shards=shards,
    )


def _totals(conn: Connection) -> dict[str, int]:
    row = conn.execute(statements.TOTALS).one()
    return {
        "posted": int(row.posted),
        "duplicate": int(row.duplicate),
        "refused": int(row.refused),
    }


def _shards(buffer: UsageBuffer, cursors: Sequence[Cursor]) -> Iterator[ShardEvents]:
    known = {(cursor.shard, cursor.epoch): cursor for cursor in cursors}
    accounts = {shard: buffer.account(shard) for shard in buffer.shards}
    for shard, account in accounts.items():
        cursor = known.pop((shard, account.epoch), None)
        if cursor is not None or account.accepted:
            yield _live(buffer, cursor or Cursor(shard=shard, epoch=account.epoch), account)
    for cursor in known.values():
        yield _ended(cursor)


def _live(buffer: UsageBuffer, cursor: Cursor, account: Account) -> ShardEvents:
    """Return a shard's present account. Redis behind the cursor has forgotten what was settled."""
    forgotten = max(0, cursor.accepted_count - account.accepted)
    unread = max(0, account.accepted - cursor.accepted_count)
    gone = min(unread, _gap_before_head(buffer, cursor)) if unread else 0
    rewound = cursor.rewound_count + forgotten
    return ShardEvents(
        shard=cursor.shard,
        epoch=cursor.epoch,
        accepted=account.accepted + rewound,
        settled=cursor.settled_count,
        buffered=unread - gone,
        lost=cursor.lost_count + gone,
        rewound=rewound,
        live=True,
    )


def _gap_before_head(buffer: UsageBuffer, cursor: Cursor) -> int:
    """Return how many unread events are missing before the first unread chunk.

    What is missing further behind shows when the drain gets there.
    """
    head = buffer.read_head(cursor.shard, HEAD_EVENTS)
    for chunk in head:
        after = cursor.after(chunk)
        if chunk.accepted_total > cursor.accepted_count:
            return after.lost_count - cursor.lost_count
    return 0 if head else buffer.account(cursor.shard).accepted - cursor.accepted_count


def _ended(cursor: Cursor) -> ShardEvents:
    """Return the account of a stream that Redis no longer has: only what was read is known."""
    return ShardEvents(
        shard=cursor.shard,
        epoch=cursor.epoch,
        accepted=cursor.accepted_count + cursor.rewound_count,
        settled=cursor.settled_count,
        buffered=0,
        lost=cursor.lost_count,
        rewound=cursor.rewound_count,
        live=False,
    )
