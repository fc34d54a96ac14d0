"""Processes with another number of shards than the buffer."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping

import httpx
import pytest

from metering.buffer.stream import UsageBuffer
from metering.errors import ShardMismatchError
from support.command import Gullak
from support.tenant import Shop, event
from support.tiers import mostly_slow
from support.traffic import wait_for
from worker.local.port import free_port
from worker.local.up import Stack
from worker.session import Sessions
from worker.settings import Settings

START_TIMEOUT_S = 60
TOLD = "events in 16 shards, this process is set to 8"

PROCESSES = {
    "worker": ("-m", "celery", "-A", "worker.app", "--quiet", "worker", "-Q", "debit"),
    "webhook worker": ("-m", "celery", "-A", "worker.app", "--quiet", "worker", "-Q", "webhook"),
    "beat": ("-m", "celery", "-A", "worker.app", "--quiet", "beat"),
    "api": ("-m", "api.server", "--port", str(free_port())),
}


@pytest.fixture
def shop(sessions: Sessions, buffer: UsageBuffer) -> Shop:
    """A business with two buffered events, in 16 shards."""
    shop = Shop.open(sessions, buffer)
    shop.meter("tokens", {"USD": "1"})
    shop.send(event(shop.customers[0]), event(shop.customers[0]))
    return shop


@pytest.fixture
def eight(config: Settings, variables: Mapping[str, str]) -> dict[str, str]:
    """An environment with another number of shards."""
    urls = {
        "DATABASE_URL": config.database_url.get_secret_value(),
        "REDIS_URL": config.redis_url.get_secret_value(),
    }
    return {**variables, **urls, "GULLAK_SHARDS": "8", "GULLAK_LOG_FORMAT": "text"}


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("name", mostly_slow(PROCESSES, "worker"))
def test_a_process_refuses_to_start_with_one_clear_error(
    eight: Mapping[str, str], name: str
) -> None:
    ended = subprocess.run(
        [sys.executable, *PROCESSES[name]],
        env={**os.environ, **eight},
        timeout=START_TIMEOUT_S,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 78
    assert (ended.stdout + ended.stderr).count(TOLD) == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("shop")
def test_a_stack_refuses_to_start(start_stack: Callable[..., Stack]) -> None:
    with pytest.raises(ShardMismatchError, match=TOLD):
        start_stack(GULLAK_SHARDS="8")


def missing(stack: Stack) -> object:
    return httpx.get(f"{stack.api_url}/readyz").json()["missing"]


def test_a_running_stack_reports_another_number_of_shards_and_does_all_other_work(
    start_stack: Callable[..., Stack], sessions: Sessions, buffer: UsageBuffer
) -> None:
    """Another process has appended to the empty buffer with another number."""
    shop = Shop.open(sessions, buffer)
    stack = start_stack(GULLAK_SHARDS="8")
    pids = stack.pids
    shop.send(event(shop.customers[0]))

    wait_for(lambda: missing(stack) == ["shards"])
    one = {"event_id": "e-1", "customer_id": shop.customers[0], "event_name": "llm.completion"}
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    sent = httpx.post(f"{stack.api_url}/events/ingest", json={"events": [one]}, headers=headers)

    assert (sent.status_code, TOLD in sent.json()["message"]) == (503, True)
    wait_for(lambda: "gullak_backlog_events 1.0" in httpx.get(f"{stack.api_url}/metrics").text)
    wait_for(lambda: TOLD in (stack.data_dir / "log" / "worker.log").read_text())
    assert stack.pids == pids


def test_verify_uses_the_number_of_shards_in_redis(
    shop: Shop,
    config: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gullak = Gullak.on(config, monkeypatch, capsys)
    monkeypatch.setenv("GULLAK_SHARDS", "8")

    seen = gullak("verify", "--json").json

    assert (seen["events"]["accepted"], seen["events"]["buffered"]) == (2, 2)
    shop.drain()
    assert gullak("verify", "--json").json["events"]["posted"] == 2
