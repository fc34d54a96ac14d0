"""The API while a store is down: a fast 503 with Retry-After, and no event is lost."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from api.auth import KeyCache
from metering.ids import BusinessId
from support.edge import Api, running_api
from support.own_redis import OwnRedis, running_redis
from support.tenant import Shop
from worker.settings import Settings, settings_from

EVENT = {"event_id": "r-1", "customer_id": "cus_x", "event_name": "call"}


@pytest.fixture
def redis(data_dir: Path) -> Iterator[OwnRedis]:
    with running_redis(data_dir) as server:
        yield server


@pytest.fixture
def away(config: Settings, redis: OwnRedis, shop: Shop) -> Iterator[Api]:
    """The API over a Redis that a test may stop."""
    own = settings_from(
        {"DATABASE_URL": config.database_url.get_secret_value(), "REDIS_URL": redis.url}
    )
    with running_api(own) as url:
        api = Api(url, shop.sessions, shop.business_id, "")
        yield Api(url, shop.sessions, shop.business_id, api.key_for())


def ingest(client: httpx.Client) -> httpx.Response:
    return client.post("/events/ingest", json={"events": [EVENT]})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "frozen"])
def test_ingestion_without_redis_returns_503_and_retry_after(
    away: Api, redis: OwnRedis, number: signal.Signals
) -> None:
    with away.client() as client:
        assert ingest(client).status_code == 200
        redis.send(number)
        time.sleep(0.1)

        refused = ingest(client)
        ready = client.get("/readyz")

    assert (refused.status_code, refused.json()["code"]) == (503, "UNAVAILABLE")
    assert int(refused.headers["Retry-After"]) >= 1
    assert ready.json()["missing"] == ["redis"]


def test_ingestion_above_the_high_water_mark_returns_retry_after(
    config: Settings, shop: Shop
) -> None:
    low = config.model_copy(update={"high_water_events": 1})
    with running_api(low) as url:
        bare = Api(url, shop.sessions, shop.business_id, "")
        with bare.client(bare.key_for()) as client:
            first, second = ingest(client), ingest(client)

    assert (first.status_code, second.status_code) == (200, 429)
    assert int(second.headers["Retry-After"]) >= 1


def test_a_cached_key_works_for_a_limited_time_while_postgres_is_down(shop: Shop) -> None:
    key = Api("", shop.sessions, shop.business_id, "").key_for("ingest")
    away: list[str] = []

    @contextmanager
    def tenant(business_id: BusinessId) -> Iterator[Connection]:
        if away:
            raise OperationalError("", {}, psycopg.OperationalError("connection refused"))
        with shop.sessions.tenant(business_id) as conn:
            yield conn

    patient = KeyCache(tenant, fresh_s=0, stale_s=60)
    strict = KeyCache(tenant, fresh_s=0, stale_s=0)
    principals = [ring.principal(key) for ring in (patient, strict)]
    away.append("postgres")

    assert patient.principal(key) == principals[0]
    with pytest.raises(OperationalError):
        strict.principal(key)
    with pytest.raises(OperationalError):
        patient.principal(f"gk_{'a' * 12}_{'b' * 43}")


def test_a_revoked_key_is_refused_after_its_time_in_the_cache(config: Settings, shop: Shop) -> None:
    eager = config.model_copy(update={"api_key_ttl_s": 0.0})
    with running_api(eager) as url:
        bare = Api(url, shop.sessions, shop.business_id, "")
        with bare.client(bare.key_for()) as client:
            before = client.get("/customers")
            with shop.sessions.transaction() as conn:
                conn.exec_driver_sql("UPDATE api_keys SET revoked_at = now()")
            after = client.get("/customers")

    assert (before.status_code, after.status_code) == (200, 401)
