"""Publishing while the broker goes away and comes back."""

from contextlib import suppress
from pathlib import Path

import pytest
from celery import Celery

from own_redis import OwnRedis, running_redis
from worker.broker import BrokerAwayError, send


def app_of(server: OwnRedis) -> Celery:
    app = Celery("publisher")
    app.config_from_object("celeryconfig")
    app.conf.broker_url = server.url
    return app


def test_a_broker_that_is_away_is_named_as_the_cause(data_dir: Path) -> None:
    with running_redis(data_dir) as server, app_of(server) as app:
        send(app, "debit.sweep")
        server.kill()

        with pytest.raises(BrokerAwayError, match=r"debit\.sweep was not sent"):
            send(app, "debit.sweep")


def test_a_broker_that_comes_back_while_a_queue_is_declared_costs_at_most_one_message(
    data_dir: Path,
) -> None:
    with running_redis(data_dir) as server, app_of(server) as app:
        app.conf.task_publish_retry_policy |= {"errback": lambda *_: server.start()}
        send(app, "debit.sweep")
        server.kill()

        with suppress(BrokerAwayError):
            send(app, "purchase.charge")

        send(app, "purchase.charge")
