"""Drain a shard: read the head, settle it in one transaction, commit, then trim.

If the process dies in between, the next drain reads the same head again. The keys of the events
tell what the ledger has settled; the shard's cursor only counts events.

A thread prepares one batch ahead while Postgres works. With a single busy shard, as one hot wallet
causes, this halves the time, because pricing in Python and posting take about equally long.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from time import monotonic

from sqlalchemy import Connection

from metering.buffer.entry import stream_position
from metering.buffer.keys import Shard
from metering.db import DATABASE_ERRORS, is_timeout
from metering.debit import statements
from metering.debit.cursor import advance, read_cursor
from metering.debit.prepare import PreparedBatch, prepare, price_head
from metering.debit.resources import Drain
from metering.debit.unpriced import notify_unpriced
from metering.debit.write import BatchWriter, Outcome
from metering.errors import NewerChunkError


@dataclass(slots=True)
class DrainReport:
    """The result of one run.

    reasons  how many events were refused, by reason
    head_ms  when the last chunk that it read was buffered, in Unix milliseconds
    newer    set if the run ended at a chunk that a newer release wrote
    """

    outcome: Outcome = field(default_factory=Outcome)
    reasons: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    head_ms: int = 0
    newer: NewerChunkError | None = None


def drain_shard(drain: Drain, shard: Shard, slice_s: float) -> DrainReport:
    """Drain a shard, batch by batch, until it is empty or `slice_s` is over.

    Raises:
        DBAPIError, psycopg.Error: the server failed (`db.is_server_fault`). Nothing of the batch
            was written and its head is still there.
        RedisError: Redis is away.

    """
    report = DrainReport()
    with drain.transaction() as turn:
        # This lock only keeps two runs from preparing the same batches. The lock in each batch's
        # transaction guards the money.
        if not turn.execute(statements.TRY_TURN, {"shard": shard}).scalar_one():
            return report
        try:
            for batch in _batches(drain, shard, monotonic() + slice_s):
                writer = _settle(drain, shard, batch)
                if writer is None:
                    break
                report.outcome.add(writer.outcome)
                report.reasons += writer.reasons
                report.batches += 1
                report.head_ms = batch.head[-1].position[0]
        except NewerChunkError as error:
            report.newer = error
    return report


def _batches(drain: Drain, shard: Shard, ends_at: float) -> Iterator[PreparedBatch]:
    """Yield batches, and prepare the next one while the caller settles this one.

    Nothing is prepared ahead while a head is tried again: if the next batch is what kills the
    process, this head must still make progress.
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


def _settle(drain: Drain, shard: Shard, batch: PreparedBatch) -> BatchWriter | None:
    """Settle one batch and trim it. Returns None if another drain has the shard."""
    try:
        with drain.transaction() as conn:
            if not conn.execute(statements.TRY_SHARD, {"shard": shard}).scalar_one():
                drain.buffer.forget_attempts(shard)  # nothing was tried
                return None
            writer = _write(conn, drain, shard, batch)
            drain.checkpoint("before_commit")
    except DATABASE_ERRORS as error:
        # The process survived this error, and the fault of an event does not get here.
        drain.buffer.forget_attempts(shard)
        if is_timeout(error):
            drain.smaller(shard)
        raise
    drain.larger(shard)
    drain.checkpoint("after_commit")
    drain.checkpoint("before_trim")
    drain.buffer.trim(shard, batch.head)
    drain.checkpoint("after_trim")
    return writer


def _write(conn: Connection, drain: Drain, shard: Shard, batch: PreparedBatch) -> BatchWriter:
    if drain.cards.versions(conn, set(batch.versions)) != batch.versions:
        batch = price_head(drain, batch)
    cursor = read_cursor(conn, shard, batch.epoch)
    settled_to = stream_position(cursor.last_stream_id)
    begun = {
        "batch_id": batch.batch_id,
        "shard": shard,
        "epoch": batch.epoch,
        "first_stream_id": batch.head[0].stream_id,
        "last_stream_id": batch.last_stream_id,
    }
    conn.execute(statements.BEGIN_BATCH, begun)
    writer = BatchWriter(
        conn,
        batch.batch_id,
        drain.checkpoint,
        chunks_replayed=sum(chunk.position <= settled_to for chunk in batch.head),
        lines=batch.lines,
    )
    refused = writer.post(list(batch.events.values()))
    writer.skip(batch.repeated)
    writer.refuse([*batch.refusals, *refused])
    if writer.outcome.unmetered or writer.reasons:
        notify_unpriced(conn, batch)
    counts = {"batch_id": batch.batch_id, **asdict(writer.outcome)}
    conn.execute(statements.FINISH_BATCH, counts)
    advance(conn, cursor, batch.head)
    return writer
