"""Fixtures of the webhook tests, for modules that name them in `pytest_plugins`."""

from collections.abc import Iterator

import pytest
from pytest_httpserver import HTTPServer

from metering.webhook.send import HttpSender
from support.webhook_receiver import POLICY, Bench
from worker.session import Sessions


@pytest.fixture(scope="module")
def webhook_server() -> Iterator[HTTPServer]:
    with HTTPServer(host="127.0.0.1", threaded=True) as running:
        yield running


@pytest.fixture
def bench(sessions: Sessions, webhook_server: HTTPServer) -> Iterator[Bench]:
    webhook_server.clear()
    sender = HttpSender(timeout_s=POLICY.timeout_s, allow_private=True)
    yield Bench(sessions, webhook_server, sender)
    sender.close()
    webhook_server.check_handler_errors()
