"""Stage 4: the walk over the invariants, the gauges of what waits, and the clean-up."""

from dataclasses import asdict
from typing import Final

import structlog

from metering.retention import Retention
from metering.retention import prune as prune_rows
from metering.verify.schedule import continue_walk
from worker.context import context
from worker.metrics import LEDGER_FAULTS, LEDGER_VERIFIED, publish
from worker.status import read_buffered, read_waiting
from worker.task import Report, task

# Beat asks every 10 s: a fifth of one worker's time at most, and only while a walk is under way.
SLICE_MS: Final = 2000

log = structlog.get_logger("gullak.verify")


@task("ledger.verify")
def verify(since: int = 0) -> Report:
    """Continue the walk over the invariants, without the deep ones, which `gullak verify` runs."""
    done = continue_walk(context().snapshot, since, SLICE_MS)
    for fault in done.faults:
        log.error("ledger fault", fault_id=fault.fault_id, **asdict(fault))
    LEDGER_FAULTS.set(done.fault_count)
    if done.completed_at is not None:
        LEDGER_VERIFIED.set(done.completed_at.timestamp())
    return {"faults": len(done.faults)}


@task("ledger.measure")
def measure() -> Report:
    """Set the gauges of what waits; without Redis or Postgres they stay as they are."""
    current = context()
    buffered = read_buffered(current.buffer)
    if isinstance(buffered, str):
        log.warning("not measured", cause=buffered)
        return {}
    with current.snapshot() as conn:
        waiting = read_waiting(conn)
    publish(buffered, waiting, current.settings.currencies)
    return {}


@task("ledger.prune")
def prune() -> Report:
    """Delete old webhooks, provider events and refused events."""
    config = context().settings
    keep = Retention(
        webhook_days=config.webhook_retention_days,
        provider_body_days=config.provider_body_retention_days,
        refused_days=config.refused_retention_days,
    )
    return prune_rows(context().transaction, keep, SLICE_MS)
