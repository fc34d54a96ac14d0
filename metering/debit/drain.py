"""Drain a shard: read the head, settle it in one transaction, commit, then trim.

Whatever dies in between reads the same head again. What the ledger had settled by then is known by
the keys of its events; the shard's cursor only keeps the count of events straight.

One batch ahead is prepared by a thread while Postgres works: for a single shard, as one hot wallet
makes it, that is worth half the time, because pricing in Python and posting take about as long.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic

from sqlalchemy import Connection

from metering.buffer.entry import stream_position
from metering.buffer.keys import Shard
from metering.db import DATABASE_ERRORS, is_timeout
from metering.debit import statements
from metering.debit.cursor import advance, read_cursor
from metering.debit.prepare import (
    Drain,
    PreparedBatch,
    prepare,
    prepare_again,
)
from metering.debit.unpriced import tell_unpriced
from metering.debit.write import Outcome, Settlement
from metering.errors import NewerChunkError

__all__ = ["Drain", "DrainReport", "drain_shard"]


@dataclass(slots=True)
class DrainReport:
    """What one run did.

    `head_ms`: when the last chunk read had been buffered, Unix time in ms. `newer`: why it ended
    before the shard was empty, if a newer release wrote what comes next. `reasons`: how many events
    were refused for each.
    """

    outcome: Outcome = field(default_factory=Outcome)
    reasons: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    head_ms: int = 0
    newer: NewerChunkError | None = None


def drain_shard(drain: Drain, shard: Shard, slice_s: float) -> DrainReport:
    """Work off a shard, batch by batch, until it is empty or `slice_s` is over.

    Raises:
        DBAPIError, psycopg.Error: the database failed, by no fault of an event's
            (`db.is_server_fault`): nothing of the batch was written, the head is still there.
        RedisError: Redis is away.

    """
    report = DrainReport()
    with drain.transaction() as turn:
        # Only so that two runs do not prepare the same batches, or snatch a shard from each other
        # between two of them; what guards the money is the lock inside each batch's transaction.
        if not turn.execute(statements.TRY_TURN, {"shard": shard}).scalar_one():
            return report
        try:
            _work_off(drain, shard, slice_s, report)
        except NewerChunkError as error:
            report.newer = error
    return report


def _work_off(drain: Drain, shard: Shard, slice_s: float, report: DrainReport) -> None:
    for batch in _batches(drain, shard, monotonic() + slice_s):
        settled = _settle(drain, shard, batch)
        if settled is None:
            break
        report.outcome.add(settled.outcome)
        report.reasons += settled.reasons
        report.batches += 1
        report.head_ms = batch.head[-1].position[0]


def _batches(drain: Drain, shard: Shard, ends_at: float) -> Iterator[PreparedBatch]:
    """Prepare batch after batch, one ahead of the one that is being settled.

    Not ahead of a head that was begun before and never finished: should the next batch be what
    kills, the head must get through first.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare") as ahead:
        batch = prepare(drain, shard)
        while batch is not None:
            following: Future[PreparedBatch | None] | None = None
            if batch.attempts == 1 and monotonic() < ends_at:
                following = ahead.submit(prepare, drain, shard, batch.last_stream_id)
            yield batch
            if following is not None:
                batch = following.result()
            else:
                batch = prepare(drain, shard) if monotonic() < ends_at else None


def _settle(drain: Drain, shard: Shard, batch: PreparedBatch) -> Settlement | None:
    """Settle one batch and trim it; None if another drain has the shard."""
    try:
        with drain.transaction() as conn:
            if not conn.execute(statements.TRY_SHARD, {"shard": shard}).scalar_one():
                drain.buffer.forget_attempts(shard)  # nothing was tried
                return None
            settlement = _write(conn, drain, shard, batch)
            drain.checkpoint("before_commit")
    except DATABASE_ERRORS as error:
        # An error that comes back ended no worker; and an event's fault does not come as far.
        drain.buffer.forget_attempts(shard)
        if is_timeout(error):
            drain.smaller(shard)
        raise
    drain.larger(shard)
    drain.checkpoint("after_commit")
    drain.checkpoint("before_trim")
    drain.buffer.trim(shard, batch.head)
    drain.checkpoint("after_trim")
    return settlement


def _write(conn: Connection, drain: Drain, shard: Shard, batch: PreparedBatch) -> Settlement:
    if drain.cards.versions(conn, set(batch.versions)) != batch.versions:
        batch = prepare_again(drain, batch)
    cursor = read_cursor(conn, shard, batch.epoch)
    settled_to = stream_position(cursor.last_stream_id)
    _begin_batch(conn, shard, batch)
    settlement = Settlement(
        conn,
        batch.batch_id,
        drain.checkpoint,
        chunks_replayed=sum(chunk.position <= settled_to for chunk in batch.head),
        lines=batch.lines,
    )
    refused = settlement.post(list(batch.events.values()))
    settlement.skip(batch.repeated)
    settlement.refuse([*batch.refusals, *refused])
    if settlement.outcome.unmetered or settlement.reasons:
        tell_unpriced(conn, batch)
    _finish_batch(conn, settlement)
    advance(conn, cursor, batch.head)
    return settlement


def _begin_batch(conn: Connection, shard: Shard, batch: PreparedBatch) -> None:
    conn.execute(
        statements.BEGIN_BATCH,
        {
            "batch_id": batch.batch_id,
            "shard": shard,
            "epoch": batch.epoch,
            "first_stream_id": batch.head[0].stream_id,
            "last_stream_id": batch.last_stream_id,
        },
    )


def _finish_batch(conn: Connection, settlement: Settlement) -> None:
    counts = {name: getattr(settlement.outcome, name) for name in Outcome.__slots__}
    conn.execute(statements.FINISH_BATCH, {"batch_id": settlement.batch_id, **counts})
