"""A drain is killed at each of its named points; a new one takes over without any trace."""

import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from sqlalchemy import text

from metering.buffer.keys import stream_key
from support.tiers import mostly_slow
from support.traffic import CUSTOMERS, Workload
from worker.local.up import Stack

POINTS = ("after_read", "after_copy", "before_commit", "after_commit", "before_trim", "after_trim")
COMMITTED = ("after_commit", "before_trim", "after_trim")
BATCH_EVENTS = "20"

# The work of a worker's child without the broker: the body of the task, shard by shard.
DRAIN_ALL = """
from tasks.debit import drain
from worker.context import context
while busy := context().buffer.backlog().busy:
    for shard in busy:
        drain(shard)
"""
RunDrain = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_drain(database_url: str, redis_url: str, variables: Mapping[str, str]) -> RunDrain:
    """Drain everything in another process: `run_drain(GULLAK_…="…")`."""
    urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}

    def run(**overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", DRAIN_ALL],
            env={**variables, **urls, "GULLAK_BATCH_EVENTS": BATCH_EVENTS, **overrides},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def chunks_in(workload: Workload) -> int:
    buffer = workload.shop.buffer
    return sum(buffer.redis.xlen(stream_key(shard)) for shard in buffer.shards)


@pytest.mark.parametrize("point", mostly_slow(POINTS, "before_commit", "after_commit"))
def test_a_drain_killed_at_a_point_is_taken_over_and_every_event_is_charged_once(
    workload: Workload, run_drain: RunDrain, tmp_path: Path, point: str
) -> None:
    workload.send(150)
    workload.shop.drain()
    workload.top_up()  # recovered, and low again while drains are killed
    workload.send(400)
    chunks, batches = chunks_in(workload), workload.batches()

    (tmp_path / point).touch()
    killed = run_drain(GULLAK_FAILPOINT_DIR=str(tmp_path))

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert workload.batches() - batches == (point in COMMITTED)
    assert (chunks_in(workload) < chunks) == (point == "after_trim")

    successor = run_drain(GULLAK_FAILPOINT_DIR=str(tmp_path))

    assert successor.returncode == 0, successor.stderr
    assert workload.is_drained()
    assert workload.alerts() == 3 * CUSTOMERS  # low, recovered, low again
    assert (workload.counted("replayed_count") > 0) == (point in ("after_commit", "before_trim"))
    assert workload.broken() == []


@pytest.mark.slow
@pytest.mark.parametrize("point", ["after_copy", "before_trim"])
def test_a_worker_goes_on_after_its_child_is_killed_at_a_point(
    workload: Workload, start_stack: Callable[..., Stack], tmp_path: Path, point: str
) -> None:
    failpoint = tmp_path / point
    failpoint.touch()
    start_stack(GULLAK_FAILPOINT_DIR=str(tmp_path), GULLAK_BATCH_EVENTS=BATCH_EVENTS)

    workload.send(400)

    workload.wait_drained()
    assert not failpoint.exists()
    assert workload.broken() == []


def test_the_oracle_finds_each_violation(workload: Workload) -> None:
    workload.send(200)
    workload.shop.drain()
    workload.attempts.acked.add("lost")
    with workload.shop.sessions.transaction() as conn:
        for spoiled in (
            "UPDATE wallets SET balance_minor = balance_minor + 1 WHERE version > 0",
            "DELETE FROM usage_event_keys",
            "DELETE FROM webhook_events",
        ):
            conn.execute(text(spoiled))

    violations = " | ".join(workload.broken())

    for part in ("acked, but not applied", "keys taken", "balance of", "alerts due", "verify:"):
        assert part in violations
