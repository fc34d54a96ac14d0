"""Stage 3: the sweep looks at all shards and wakes the drains; a drain debits a shard's usage."""

from contextlib import suppress
from functools import cache
from os import getpid
from time import monotonic, time
from typing import Final

import structlog

from metering.accept.summed import publish_quantities
from metering.buffer.keys import Shard
from metering.debit.drain import drain_shard
from metering.debit.resources import Drain
from metering.errors import NewerChunkError, ShardMismatchError
from metering.rate_card.cards import RateCards, summed_properties
from metering.usage.partitions import maintain_partitions, summarize_usage
from metering.usage.refused import mark_mended
from worker.context import checkpoint_of, context
from worker.log import is_news
from worker.metrics import (
    BACKLOG_EVENTS,
    EVENTS,
    EVENTS_REFUSED,
    LAG_SECONDS,
    SHARD_WAITS_FOR_UPGRADE,
)
from worker.task import Report, shuffled, task, wake, wake_at_most

# Debits may have crossed thresholds: the alerts need not wait for beat's next second.
ALERT_WAIT_S: Final = 0.25
# Lists leave mended dead letters out, also those that a run does not get to.
MEND_MAX_S: Final = 10.0

log = structlog.get_logger("gullak.debit")


@task("debit.sweep")
def sweep() -> Report:
    """Wake a drain for every shard that holds work."""
    buffer = context().buffer
    # Set it first: the sweep fails if other processes use another number of shards.
    BACKLOG_EVENTS.set(buffer.held_events())
    with suppress(ShardMismatchError):  # the worker's watchdog reports it
        for shard in shuffled(buffer.sweep().busy):
            wake("debit.drain", shard)
    return {}


@task("debit.drain")
def drain(shard: int) -> Report:
    """Debit what a shard holds, within a time slice."""
    report = drain_shard(_drain(getpid()), Shard(shard), context().settings.drain_slice_s)
    _note_newer(shard, report.newer)
    counts = {name: getattr(report.outcome, name) for name in report.outcome.__slots__}
    for outcome, count in counts.items():
        EVENTS.labels(outcome).inc(count)
    for reason, count in report.reasons.items():
        EVENTS_REFUSED.labels(reason).inc(count)
    if report.head_ms:
        LAG_SECONDS.observe(max(0.0, time() - report.head_ms / 1000))
        wake_at_most("webhook.sweep", ALERT_WAIT_S)
    return {"shard": shard, **counts} if any(counts.values()) else {}


@task("debit.partition")
def partition() -> Report:
    """Make daily partitions ahead and drop those past the retention."""
    config = context().settings
    with context().transaction() as conn:
        report = maintain_partitions(
            conn,
            ahead_days=config.usage_partitions_ahead_days,
            retention_days=config.usage_retention_days,
        )
    return {"made": report.made, "dropped": report.dropped}


@task("debit.summarize")
def summarize() -> Report:
    """Add the last rows of kept usage to its index."""
    with context().transaction() as conn:
        added = summarize_usage(conn)
    return {"ranges": added} if added else {}


@task("debit.mark_mended")
def mend() -> Report:
    """Mark dead letters whose id was charged with another event."""
    marked = mark_mended(context().transaction, monotonic() + MEND_MAX_S)
    return {"mended": marked} if marked else {}


@task("debit.publish_quantities")
def publish() -> Report:
    """Publish which properties are summed, so that the API refuses bad quantities itself."""
    with context().transaction() as conn:
        found = summed_properties(conn)
    publish_quantities(context().buffer.redis, found)
    return {}


def _note_newer(shard: int, newer: NewerChunkError | None) -> None:
    """Report whether a shard waits for an upgrade of this worker."""
    SHARD_WAITS_FOR_UPGRADE.labels(str(shard)).set(newer is not None)
    if newer is not None and is_news(f"shard {shard} waits for an upgrade"):
        log.error("upgrade this worker", cause=newer.message)


@cache
def _drain(_pid: int) -> Drain:
    """Make the drain of this process, with its caches."""
    current = context()
    return Drain(
        current.transaction,
        current.buffer,
        RateCards(tuple(current.settings.currencies)),
        current.settings.batch_events,
        checkpoint_of(current.settings),
    )
