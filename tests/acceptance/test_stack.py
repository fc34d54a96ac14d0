"""The stack beside other code, as demo and tests use it, and the worker's stand-in sweep."""

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from redis import Redis

from metering.buffer.keys import PULSE
from metering.errors import ConfigurationError, DataDirInUseError
from worker.local.up import Stack
from worker.settings import Settings


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_stack_uses_the_servers_it_is_given(stack: Stack, config: Settings) -> None:
    assert stack.database_url == config.database_url.get_secret_value()
    assert stack.redis_url == config.redis_url.get_secret_value()
    assert set(stack.pids) == {"supervisor", "worker", "worker_webhook", "beat", "api"}
    assert stack.missing() == []


def test_a_data_directory_is_for_one_stack(stack: Stack, variables: Mapping[str, str]) -> None:
    second = Stack(stack.data_dir, variables=variables)

    with pytest.raises(DataDirInUseError) as refused, second:
        pass

    assert refused.value.pid == os.getpid()
    assert stack.missing() == []


def test_a_stack_that_cannot_start_leaves_nothing_running(
    data_dir: Path, variables: Mapping[str, str]
) -> None:
    overrides = {"DATABASE_URL": "postgresql://gullak:x@127.0.0.1:1/gullak"}
    children = psutil.Process().children(recursive=True)

    with (
        pytest.raises(ConfigurationError, match="database was not migrated"),
        Stack(data_dir, variables=variables, overrides=overrides),
    ):
        pass

    assert psutil.Process().children(recursive=True) == children


def test_the_worker_sweeps_in_place_of_a_silent_beat(stack: Stack, redis_url: str) -> None:
    os.kill(stack.pids["beat"], signal.SIGSTOP)

    with Redis.from_url(redis_url) as redis:
        # The first may still be a sweep that beat had asked for.
        for _ in range(3):
            redis.delete(PULSE)
            wait_for(lambda: redis.exists(PULSE))

    os.kill(stack.pids["beat"], signal.SIGCONT)


def test_the_ledger_is_verified_soon_after_each_start(start_stack: Callable[..., Stack]) -> None:
    def is_later(stack: Stack, moment: float) -> bool:
        text = httpx.get(f"{stack.api_url}/metrics").text
        found = re.findall(r"^gullak_ledger_verified_timestamp_seconds (\S+)$", text, re.MULTILINE)
        return any(float(value) > moment for value in found)

    for _ in range(2):
        started = time.time()
        stack = start_stack()
        wait_for(partial(is_later, stack, started))
        stack.stop()
