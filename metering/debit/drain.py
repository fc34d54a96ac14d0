"""Drain a shard: read the head, settle it in one transaction, commit, then trim.

Whatever dies in between reads the same head again. What the ledger had settled by then is known by
the keys of its events; the shard's cursor only keeps the count of events straight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from sqlalchemy import Connection

from metering.buffer.keys import Epoch, Shard
from metering.buffer.stream import HeadChunk, UsageBuffer
from metering.db import Transactions
from metering.debit import statements
from metering.debit.batch import KeyedEvent, Refusal, key_events
from metering.debit.cursor import advance, read_cursor
from metering.debit.pricing import price_events
from metering.debit.settle import Checkpoint, Outcome, Settlement
from metering.errors import UnpostableEventError
from metering.ids import BatchId, CustomerId
from metering.ledger.accounts import payers
from metering.rate_card.cards import RateCards

# From the third attempt at a head its batch is halved each time, in case its size is the cause.
ATTEMPTS_WHOLE: Final = 2
# A chunk that is alone and was begun so often has killed every worker that touched it.
ATTEMPTS_MAX: Final = 20


def no_checkpoint(_name: str) -> None:
    """Do nothing: named points of the drain, where fault tests kill the process."""


@dataclass(frozen=True, slots=True)
class Drain:
    """What draining needs, made once per process."""

    transaction: Transactions
    buffer: UsageBuffer
    cards: RateCards
    batch_events: int
    checkpoint: Checkpoint = no_checkpoint


@dataclass(slots=True)
class DrainReport:
    """What one run did. `head_ms`: when the last chunk read had been buffered, Unix time in ms."""

    outcome: Outcome
    batches: int = 0
    head_ms: int = 0
    shard_taken: bool = False


def drain_shard(drain: Drain, shard: Shard, slice_s: float) -> DrainReport:
    """Work off a shard, batch by batch, until it is empty or `slice_s` is over.

    Raises:
        DBAPIError, psycopg.Error: the database is away or a conflict passes by itself
            (`db.is_transient`): nothing of the batch was written, the head is still there.
        RedisError: Redis is away.

    """
    report = DrainReport(Outcome())
    ends_at = monotonic() + slice_s
    while monotonic() < ends_at:
        head = _drain_batch(drain, shard, report)
        if not head:
            break
        report.batches += 1
        report.head_ms = head[-1].position[0]
    return report


def _drain_batch(drain: Drain, shard: Shard, report: DrainReport) -> Sequence[HeadChunk]:
    """Settle one batch; return the chunks it settled: none if there is no work or no lock."""
    with drain.transaction() as conn:
        if not conn.execute(statements.TRY_SHARD, {"shard": shard}).scalar_one():
            report.shard_taken = True
            return ()
        head, attempts = _begin(drain, shard)
        if not head:
            return ()
        drain.checkpoint("after_read")
        try:
            outcome = _settle(conn, drain, shard, head, hopeless=attempts > ATTEMPTS_MAX)
        except Exception:
            drain.buffer.forget_attempts(shard)  # what raises did not kill
            raise
        drain.checkpoint("before_commit")
    drain.checkpoint("after_commit")
    _add(report.outcome, outcome)
    drain.checkpoint("before_trim")
    drain.buffer.trim(shard, head)
    drain.checkpoint("after_trim")
    return head


def _begin(drain: Drain, shard: Shard) -> tuple[list[HeadChunk], int]:
    """Read the head and count the attempt; smaller each time that attempts did not come back."""
    head = drain.buffer.read_head(shard, drain.batch_events)
    if not head:
        return head, 0
    attempts = drain.buffer.begin(shard, head[0].stream_id)
    if attempts > ATTEMPTS_WHOLE:
        del head[max(1, len(head) >> (attempts - ATTEMPTS_WHOLE)) :]
    return head, attempts


def _settle(
    conn: Connection, drain: Drain, shard: Shard, head: Sequence[HeadChunk], *, hopeless: bool
) -> Outcome:
    epoch = drain.buffer.account(shard).epoch
    cursor = read_cursor(conn, shard, epoch)
    conn.execute(statements.MAKE_STAGE)
    settlement = _begin_batch(conn, shard, epoch, head, drain.checkpoint)
    events, refusals = key_events(head, cursor.last_stream_id)
    if hopeless and len(head) == 1:
        killer = UnpostableEventError(f"its chunk ended {ATTEMPTS_MAX} workers")
        refusals += [Refusal(event, killer) for event in events]
    else:
        refusals += _price_and_post(conn, drain, settlement, events)
    settlement.refuse(refusals)
    _finish_batch(conn, settlement)
    advance(conn, cursor, head)
    return settlement.outcome


def _price_and_post(
    conn: Connection, drain: Drain, settlement: Settlement, events: Sequence[KeyedEvent]
) -> list[Refusal]:
    cards = drain.cards.current(conn, {event.business_id for event in events})
    known = payers(conn, {CustomerId(event.event.customer_id) for event in events})
    priced, refusals = price_events(cards, known, events)
    return refusals + settlement.post(priced)


def _begin_batch(
    conn: Connection,
    shard: Shard,
    epoch: Epoch,
    head: Sequence[HeadChunk],
    checkpoint: Checkpoint,
) -> Settlement:
    row = conn.execute(
        statements.BEGIN_BATCH,
        {
            "shard": shard,
            "epoch": epoch,
            "first_stream_id": head[0].stream_id,
            "last_stream_id": head[-1].stream_id,
        },
    ).one()
    return Settlement(conn, BatchId(row.batch_id), row.created_at, checkpoint)


def _finish_batch(conn: Connection, settlement: Settlement) -> None:
    outcome = settlement.outcome
    conn.execute(
        statements.FINISH_BATCH,
        {
            "batch_id": settlement.batch_id,
            "posted": outcome.posted,
            "duplicate": outcome.duplicate,
            "refused": outcome.refused,
            "unmetered": outcome.unmetered,
            "replayed": outcome.replayed,
        },
    )


def _add(total: Outcome, outcome: Outcome) -> None:
    for name in Outcome.__slots__:
        setattr(total, name, getattr(total, name) + getattr(outcome, name))
