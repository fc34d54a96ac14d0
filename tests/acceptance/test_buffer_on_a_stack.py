"""Faults of the buffer as an operator meets them: with real workers, beat and API."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from metering.buffer.keys import stream_key
from metering.buffer.shard import shard_of
from metering.buffer.stream import UsageBuffer
from metering.usage.balance_of_events import read_balance
from support.buffer_probe import written_by_a_newer_release
from support.own_redis import OwnRedis, running_redis
from support.tenant import Shop, event
from worker.context import open_buffer
from worker.local.up import Stack
from worker.session import Sessions
from worker.settings import settings_from

StartStack = Callable[..., Stack]


@pytest.fixture
def shop(sessions: Sessions, buffer: UsageBuffer) -> Shop:
    shop = Shop.open(sessions, buffer)
    shop.meter("tokens", {"USD": "1"})
    return shop


def wait_for(condition: Callable[[], object], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_reports_a_chunk_of_a_newer_release(start_stack: StartStack, shop: Shop) -> None:
    stack = start_stack()
    with written_by_a_newer_release():
        shop.send(event(shop.customers[0]))
    shard = shard_of(shop.business_id, shop.customers[0], len(shop.buffer.shards))
    waits = f'gullak_shard_waits_for_upgrade{{shard="{shard}"}} 1.0'

    wait_for(lambda: waits in httpx.get(f"{stack.api_url}/metrics").text)

    log = (stack.data_dir / "log" / "worker.log").read_text()
    assert log.count("upgrade this worker") in (1, 2)  # once a minute, of each process
    assert "Traceback" not in log
    assert shop.buffer.backlog().events == 1


def fill(shop: Shop, events: int) -> None:
    """Buffer events of 1 token, in chunks of a hundred."""
    for _ in range(events // 100):
        shop.send(*(event(shop.customers[0], {"tokens": 1, "note": "x" * 500}) for _ in range(100)))


def use_up_memory(redis: OwnRedis) -> None:
    """Leave Redis no byte for a write."""
    with Redis.from_url(redis.url) as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 0.9))
        with pytest.raises(OutOfMemoryError):
            client.set("anything", 1)


@pytest.fixture
def own_redis(data_dir: Path) -> Iterator[OwnRedis]:
    with running_redis(data_dir) as server:
        yield server


@pytest.fixture
def own_shop(sessions: Sessions, own_redis: OwnRedis) -> Iterator[Shop]:
    """A business whose events go to a Redis of their own; a token costs 1 cent."""
    buffer = open_buffer(settings_from({"REDIS_URL": own_redis.url}))
    shop = Shop.open(sessions, buffer)
    shop.meter("tokens", {"USD": "1"})
    yield shop
    buffer.redis.close()


def test_a_redis_that_fills_before_or_after_the_start_is_drained(
    start_stack: StartStack, own_shop: Shop, own_redis: OwnRedis
) -> None:
    """The messages of the workers are in it too, so none gets through."""
    fill(own_shop, 2000)
    use_up_memory(own_redis)
    stack = start_stack(REDIS_URL=own_redis.url)

    wait_for(lambda: own_shop.wallet().balance_minor == -2000)
    own_redis.configure(maxmemory="0")
    os.kill(stack.pids["worker"], signal.SIGSTOP)
    fill(own_shop, 3000)
    use_up_memory(own_redis)
    api = httpx.Client(base_url=stack.api_url, headers={"Authorization": f"Bearer {stack.api_key}"})
    one = {"event_id": "e-1", "customer_id": own_shop.customers[0], "event_name": "llm.completion"}
    refused = api.post("/events/ingest", json={"events": [one]})
    os.kill(stack.pids["worker"], signal.SIGCONT)

    assert refused.status_code == 429
    assert "the usage buffer is full" in refused.json()["message"]
    wait_for(lambda: own_shop.wallet().balance_minor == -5000)
    assert own_shop.buffer.backlog().events == 0
    api.close()


@pytest.mark.slow
def test_an_idle_worker_is_not_ended_after_a_stream_was_deleted_by_hand(
    start_stack: StartStack, shop: Shop
) -> None:
    """The money is right and the loss is reported. A new worker could do nothing more."""
    stack = start_stack(GULLAK_WATCHDOG_S="5")
    pids = stack.pids
    os.kill(pids["worker"], signal.SIGSTOP)
    shop.send(event(shop.customers[0]), event(shop.customers[0]))
    shard = shard_of(shop.business_id, shop.customers[0], len(shop.buffer.shards))
    shop.buffer.redis.delete(stream_key(shard))
    os.kill(pids["worker"], signal.SIGCONT)

    wait_for(lambda: shop.buffer.counters(shard).buffered == 0)
    time.sleep(8)

    assert stack.pids == pids
    assert "counters of shard" in (stack.data_dir / "log" / "worker.log").read_text()
    balance = read_balance(shop.sessions.snapshot, shop.buffer)
    epoch = shop.buffer.counters(shard).epoch
    assert [fault.detail for fault in balance.faults()] == [
        f"shard {shard}: 2 accepted events are gone from Redis (epoch {epoch})"
    ]


def has_run(stack: Stack, task: str, times: float) -> bool:
    return runs(stack, task) >= times


def runs(stack: Stack, task: str) -> float:
    """How often a task has run."""
    text = httpx.get(f"{stack.api_url}/metrics").text
    name = f'gullak_task_runs_total{{outcome="done",task="{task}"}} '
    return sum(float(line[len(name) :]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.slow
def test_a_worker_sends_all_messages_of_an_absent_beat(start_stack: StartStack, shop: Shop) -> None:
    stack = start_stack()
    os.kill(stack.pids["beat"], signal.SIGSTOP)
    try:
        time.sleep(12)  # its last messages are taken, or have expired
        sweeps = ("webhook.sweep", "purchase.sweep", "purchase.top_up", "debit.publish_quantities")
        before = {task: runs(stack, task) for task in sweeps}

        for task in sweeps:
            wait_for(partial(has_run, stack, task, before[task] + 3))
        shop.send(event(shop.customers[0], {"tokens": 2}))
        wait_for(lambda: shop.wallet().balance_minor == -2)
    finally:
        os.kill(stack.pids["beat"], signal.SIGCONT)
