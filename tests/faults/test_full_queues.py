"""Without workers the queues of the broker stay short, and the work goes on afterwards."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import text

import celeryconfig
from metering.buffer.shard import shard_of
from metering.buffer.stream import UsageBuffer
from support.tenant import Shop, event
from support.traffic import Workload, frozen, wait_for
from worker.alive import is_alive
from worker.broker import QUEUE_MESSAGES_MAX
from worker.context import open_buffer
from worker.local.up import Stack
from worker.session import Sessions
from worker.settings import Settings, settings_from

StartStack = Callable[..., Stack]
SHARDS = 256
# Several processes may check at the same time, and each may then send one message more.
AT_ONCE = 8


@pytest.fixture
def broker(config: Settings) -> Iterator[Redis]:
    with Redis.from_url(config.celery_broker_url()) as client:
        yield client


def longest(broker: Redis) -> int:
    """The length of the longest queue."""
    return max(int(broker.llen(queue.name)) for queue in celeryconfig.task_queues)


@pytest.fixture
def beat_pid(config: Settings, variables: Mapping[str, str], tmp_path: Path) -> Iterator[int]:
    """The real beat, with a hundred times faster time; it touches `beat.alive`."""
    urls = {
        "DATABASE_URL": config.database_url.get_secret_value(),
        "REDIS_URL": config.redis_url.get_secret_value(),
    }
    own = {
        "GULLAK_ALIVE_FILE": str(tmp_path / "beat.alive"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    beat = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "support.hasty_beat", "--quiet", "beat"],
        env={**variables, **urls, **own},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield beat.pid
    beat.terminate()
    beat.wait(30)


def test_without_a_worker_the_queues_stay_short_and_a_new_worker_goes_on(
    workload: Workload, broker: Redis, beat_pid: int, tmp_path: Path, start_stack: StartStack
) -> None:
    wait_for(lambda: longest(broker) >= QUEUE_MESSAGES_MAX)
    time.sleep(5)

    assert longest(broker) == QUEUE_MESSAGES_MAX
    assert is_alive(tmp_path / "beat.alive", beat_pid, within_s=2)
    with frozen(beat_pid):
        stack = start_stack()
        workload.send(300)
        workload.wait_drained()
        wait_for(lambda: longest(broker) < QUEUE_MESSAGES_MAX / 2)
    assert not stack.missing()
    assert workload.broken() == []


@pytest.fixture
def wide_buffer(config: Settings) -> Iterator[UsageBuffer]:
    """A buffer with the largest number of shards."""
    url = config.redis_url.get_secret_value()
    opened = open_buffer(settings_from({"REDIS_URL": url, "GULLAK_SHARDS": str(SHARDS)}))
    yield opened
    opened.redis.close()


def strangers(shop: Shop) -> list[str]:
    """One unknown customer for each shard."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < SHARDS:
        customer = f"cus_{number}"
        found.setdefault(shard_of(shop.business_id, customer, SHARDS), customer)
        number += 1
    return list(found.values())


@pytest.mark.slow
def test_the_queues_stay_short_while_all_shards_wait_for_a_slow_worker(
    sessions: Sessions, wide_buffer: UsageBuffer, broker: Redis, start_stack: StartStack
) -> None:
    shop = Shop.open(sessions, wide_buffer)
    start_stack(GULLAK_SHARDS=str(SHARDS))
    lengths = []
    with sessions.transaction() as conn:
        conn.execute(text("LOCK TABLE usage_batches IN ACCESS EXCLUSIVE MODE"))
        for customer in strangers(shop):
            shop.send(event(customer))
        assert len(wide_buffer.backlog().busy) == SHARDS
        for _ in range(80):
            lengths.append(longest(broker))
            time.sleep(0.1)

    assert QUEUE_MESSAGES_MAX / 2 < max(lengths) <= QUEUE_MESSAGES_MAX + AT_ONCE
    wait_for(lambda: wide_buffer.backlog().events == 0, within_s=120)
    wait_for(lambda: longest(broker) < QUEUE_MESSAGES_MAX / 2)
    assert shop.rows("SELECT count(*) FROM refused_events") == [(SHARDS,)]
