"""Publishing while the broker goes away and comes back."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from support.own_redis import OwnRedis, running_redis
from worker.broker import EXPIRES_S, BrokerAwayError, send
from worker.watchdog.consumer import oldest_messages


def app_of(server: OwnRedis) -> Celery:
    app = Celery("publisher")
    app.config_from_object("celeryconfig")
    app.conf["broker_url"] = server.url
    return app


def test_a_broker_that_is_away_is_named_as_the_cause(data_dir: Path) -> None:
    with running_redis(data_dir) as server, app_of(server) as app:
        send(app, "debit.sweep")
        server.kill()

        with pytest.raises(BrokerAwayError, match=r"debit\.sweep was not sent"):
            send(app, "debit.sweep")


def test_at_most_one_message_is_lost_if_the_broker_returns_while_a_queue_is_declared(
    data_dir: Path,
) -> None:
    with running_redis(data_dir) as server, app_of(server) as app:
        app.conf.task_publish_retry_policy |= {"errback": lambda *_: server.start()}
        send(app, "debit.sweep")
        server.kill()

        with suppress(BrokerAwayError):
            send(app, "purchase.charge")

        send(app, "purchase.charge")


def test_the_oldest_message_of_a_queue_stays_the_oldest_until_it_is_taken(data_dir: Path) -> None:
    with running_redis(data_dir) as server, app_of(server) as app:
        app.amqp.queues.select(["sweep", "webhook"])
        send(app, "debit.sweep")
        first = oldest_messages(app)
        send(app, "debit.sweep")
        second = oldest_messages(app)
        with Redis.from_url(server.url) as broker:
            broker.rpop("sweep")
        third = oldest_messages(app)

    assert second == first
    assert [bool(message) for message in third] == [True, False]
    assert third != second


def test_an_error_of_our_own_is_not_mistaken_for_an_absent_broker(data_dir: Path) -> None:
    def route(*_: object, **__: object) -> None:
        nothing: Any = None
        nothing.of_the_kind()

    with running_redis(data_dir) as server, app_of(server) as app:
        app.conf.task_routes = (route,)

        with pytest.raises(AttributeError):
            send(app, "debit.sweep")


def test_a_message_that_no_worker_takes_in_time_is_dropped(data_dir: Path) -> None:
    """A sweep sends it again each second, so under overload the list would grow without limit."""
    with running_redis(data_dir) as server, app_of(server) as app:
        send(app, "debit.drain", 3)
        with Redis.from_url(server.url) as broker:
            message = json.loads(broker.lrange("debit", 0, -1)[0])

    expires_at = datetime.fromisoformat(message["headers"]["expires"])
    assert 0 < (expires_at - datetime.now(UTC)).total_seconds() <= EXPIRES_S
