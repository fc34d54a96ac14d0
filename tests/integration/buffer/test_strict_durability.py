"""`strict`: either an answer means a write on the disk, or usage is refused with the cause."""

import logging
from pathlib import Path
from typing import Literal

import httpx
import pytest

from metering.buffer.durability import Durability
from metering.buffer.keys import Shard
from metering.errors import DurabilityError
from support.buffer_probe import BUSINESS, events_of, open_buffer
from support.edge import Api, running_api
from support.own_redis import BINARIES, running_redis
from support.tenant import Shop
from worker.settings import settings_from

HIDDEN = 'rename-command CONFIG ""'
Fsync = Literal["always", "everysec"]

ALWAYS = "needs appendfsync always in Redis"
VOUCH = "set GULLAK_DURABILITY=strict_unchecked if you know"
Case = tuple[str, Fsync, tuple[str, ...], str]
REFUSED: list[Case] = [
    ("redis 6.2", "everysec", (), ALWAYS),
    ("valkey 9", "everysec", (), ALWAYS),  # it has WAITAOF, and answers it too early
    ("redis 6.2", "always", (HIDDEN,), VOUCH),
    ("valkey 9", "always", (HIDDEN,), VOUCH),
    ("redis 6.2", "always", ("appendonly no",), "needs appendonly yes"),
    ("valkey 9", "always", ("appendonly no", HIDDEN), "needs appendonly yes"),
    ("redis 6.2", "everysec", ("appendfsync no",), ALWAYS),
    ("redis 6.2", "always", ("no-appendfsync-on-rewrite yes",), "no-appendfsync-on-rewrite no"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: " ".join((case[0], case[1], *case[2])))
def test_usage_is_refused_if_redis_cannot_keep_the_promise_and_the_cause_is_logged_once(
    data_dir: Path,
    caplog: pytest.LogCaptureFixture,
    case: Case,
) -> None:
    server, fsync, lines, cause = case
    with running_redis(data_dir, fsync, *lines, binary=BINARIES[server]()) as running:
        strict = open_buffer(running.url, durability="strict")
        for _ in range(2):
            with pytest.raises(DurabilityError, match=cause):
                strict.append(BUSINESS, events_of(0, "a"))

        assert Shard(0) not in strict.backlog().busy
        strict.redis.close()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("no usage is taken: strict durability")


@pytest.mark.parametrize("server", BINARIES)
@pytest.mark.parametrize(
    ("durability", "lines"),
    [("strict", ()), ("strict_unchecked", ()), ("strict_unchecked", (HIDDEN,))],
)
def test_a_server_that_syncs_every_write_keeps_the_promise(
    data_dir: Path, server: str, durability: Durability, lines: tuple[str, ...]
) -> None:
    with running_redis(data_dir, "always", *lines, binary=BINARIES[server]()) as running:
        strict = open_buffer(running.url, durability=durability)
        for n in range(50):
            strict.append(BUSINESS, events_of(0, str(n)))
        running.kill()
        running.start()

        assert strict.counters(Shard(0)).buffered == 50
        strict.redis.close()


def test_a_configuration_that_is_corrected_at_run_time_takes_effect_soon(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metering.buffer.durability.REFUSED_FOR_S", 0.0)
    monkeypatch.setattr("metering.buffer.durability.BELIEVED_FOR_S", 0.0)
    with running_redis(data_dir, "everysec") as running:
        strict = open_buffer(running.url, durability="strict")
        with pytest.raises(DurabilityError):
            strict.append(BUSINESS, events_of(0, "a"))
        running.configure(appendfsync="always")
        strict.append(BUSINESS, events_of(0, "a"))

        running.configure(appendfsync="everysec")
        with pytest.raises(DurabilityError):
            strict.append(BUSINESS, events_of(0, "b"))

        assert strict.backlog().events == 1
        strict.redis.close()


def test_the_api_refuses_usage_and_its_readiness_names_the_cause(
    data_dir: Path, shop: Shop, database_url: str
) -> None:
    with running_redis(data_dir, "everysec", HIDDEN) as running:
        urls = {"DATABASE_URL": database_url, "REDIS_URL": running.url}
        with running_api(settings_from({**urls, "GULLAK_DURABILITY": "strict"})) as url:
            api = Api(url, shop.sessions, shop.business_id, "")
            ready = httpx.get(f"{url}/readyz")
            event = {"event_id": "r-1", "customer_id": shop.customers[0], "event_name": "call"}
            with api.client(api.key_for()) as client:
                sent = client.post("/events/ingest", json={"events": [event]})

    assert (ready.status_code, ready.json()["missing"]) == (503, ["durability"])
    assert VOUCH in ready.json()["causes"]["api"]
    assert sent.status_code == 503
    assert VOUCH in sent.json()["message"]
