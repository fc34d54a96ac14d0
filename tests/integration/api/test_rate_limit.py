"""The rate limit of a key holds across all API processes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from redis import Redis

from api.rate_limit import BREAKER_OPEN_S, RateLimit
from metering.buffer.stream import connect
from metering.errors import TooManyRequestsError
from metering.ids import KeyId
from support.edge import Api, running_api
from support.own_redis import running_redis
from support.tenant import Shop, at_once
from worker.settings import Settings, settings_from

HOURLY = "40/hour"
ENTRY = {"amount": 5, "currency": "USD", "entry_type": "credit"}


@contextmanager
def limited_api(config: Settings, shop: Shop) -> Iterator[Api]:
    with running_api(config.model_copy(update={"api_rate_limit": HOURLY})) as url:
        bare = Api(url, shop.sessions, shop.business_id, "")
        yield replace(bare, key=bare.key_for())


@pytest.fixture
def limited(config: Settings, shop: Shop) -> Iterator[Api]:
    with limited_api(config, shop) as api:
        yield api


def statuses(client: httpx.Client, requests: int) -> list[int]:
    return [client.get("/customers").status_code for _ in range(requests)]


def test_a_key_over_its_limit_gets_retry_after(limited: Api) -> None:
    with limited.client() as client:
        assert statuses(client, 40) == [200] * 40

        refused = client.get("/customers")

    assert (refused.status_code, refused.json()["code"]) == (429, "TOO_MANY_REQUESTS")
    assert int(refused.headers["Retry-After"]) == 3600


def test_a_refused_request_changes_nothing(limited: Api, shop: Shop) -> None:
    path = f"/customers/{shop.customers[0]}/wallets/ledger-entries"
    with limited.client() as client:
        statuses(client, 40)

        assert client.post(path, json=ENTRY).status_code == 429

    assert shop.entries() == []


def test_each_key_has_its_own_limit(limited: Api) -> None:
    with limited.client() as client, limited.client(limited.key_for()) as other:
        statuses(client, 41)

        assert other.get("/customers").status_code == 200


def test_routes_without_a_key_have_no_limit(limited: Api) -> None:
    with limited.client() as client:
        statuses(client, 41)

        assert client.get("/livez").status_code == 200


def test_processes_share_the_limit(limited: Api, config: Settings, shop: Shop) -> None:
    with (
        limited_api(config, shop) as second,
        limited.client() as one,
        second.client(limited.key) as other,
    ):
        passed = (statuses(one, 20) + statuses(other, 40)).count(200)

    assert passed == 40


@pytest.fixture
def redis(config: Settings) -> Iterator[Redis]:
    with connect(config.redis_url.get_secret_value(), timeout_s=1) as client:
        yield client


def spent(limit: RateLimit, key: str, tries: int) -> int:
    """Return how many of `tries` requests pass."""
    passed = 0
    for _ in range(tries):
        try:
            if not limit.passes(KeyId(key)):
                limit.take(KeyId(key))
            passed += 1
        except TooManyRequestsError:
            pass
    return passed


@pytest.mark.parametrize(("limit", "allowed"), [("7/hour", 7), ("100/hour", 100)])
def test_the_limit_is_the_number_of_allowed_requests(
    redis: Redis, limit: str, allowed: int
) -> None:
    assert spent(RateLimit(redis, limit), f"key_{limit}", allowed + 20) == allowed


def test_most_requests_do_not_ask_redis(redis: Redis) -> None:
    limit = RateLimit(redis, "1000/hour")
    limit.take(KeyId("key_bulk"))

    refused = sum(not limit.passes(KeyId("key_bulk")) for _ in range(49))

    assert refused == 0


def test_requests_at_once_share_one_block_of_permits(redis: Redis) -> None:
    limit = RateLimit(redis, "1000/hour")

    results = at_once(*[lambda: limit.take(KeyId("key_crowd"))] * 40)

    assert results == [None] * 40
    assert spent(limit, "key_crowd", 1000) == 960


def test_without_a_limit_every_request_passes(redis: Redis) -> None:
    assert spent(RateLimit(redis, "none"), "key_free", 5000) == 5000


def test_the_limit_is_off_for_a_while_after_redis_fails(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_redis(data_dir) as server, connect(server.url, timeout_s=0.2) as client:
        limit = RateLimit(client, "20/hour")
        spent(limit, "key_a", 21)
        server.send(signal.SIGSTOP)

        assert spent(limit, "key_b", 100) == 100

        server.send(signal.SIGCONT)
        now = limit._open_until_s + BREAKER_OPEN_S
        monkeypatch.setattr("api.rate_limit.monotonic", lambda: now)
        assert spent(limit, "key_c", 100) == 20


def test_an_invalid_limit_is_refused_at_startup() -> None:
    with pytest.raises(ValidationError):
        settings_from({"GULLAK_API_RATE_LIMIT": "many"})
