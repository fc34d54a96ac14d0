"""The buffer's faults where an operator meets them: real workers, beat and API."""

import time
from collections.abc import Callable

import httpx
import pytest

from buffer_probe import written_by_a_newer_release
from metering.buffer.shard import shard_of
from metering.buffer.stream import UsageBuffer
from shop import Shop, event
from worker.session import Sessions
from worker.up import Stack

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


def test_a_worker_says_that_a_newer_release_wrote_what_it_finds(
    start_stack: StartStack, shop: Shop
) -> None:
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
