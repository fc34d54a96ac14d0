"""The producer's client over HTTP: a real API process that dies, hangs, is busy or refuses."""

import logging
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import orjson
import pytest

from metering.accept import Meter
from metering.access.keys import Permission, create_key
from support.edge import Api, running_api
from support.own_api import OwnApi, running_own_api
from support.own_redis import running_redis
from support.tenant import Shop
from support.tiers import of_tier
from support.tls_proxy import tls_in_front_of
from worker.settings import Settings, settings_from

PATIENCE_S = 60
PRICE = Decimal("0.25")

Limited = Callable[..., str]


@pytest.fixture
def own_api(variables: Mapping[str, str], database_url: str, redis_url: str) -> Iterator[OwnApi]:
    """An API process, to be killed."""
    with running_own_api(variables, database_url, redis_url) as server:
        yield server


@pytest.fixture
def limited(config: Settings) -> Iterator[Limited]:
    """Start an API with such settings; returns its URL."""
    with ExitStack() as running:
        yield lambda **limits: running.enter_context(running_api(config.model_copy(update=limits)))


@pytest.fixture
def tokens(shop: Shop) -> Shop:
    """The shop, with a price on tokens."""
    shop.meter("tokens", {"USD": str(PRICE)})
    return shop


def key_of(shop: Shop, *permissions: Permission) -> str:
    with shop.sessions.transaction() as conn:
        return create_key(conn, shop.business_id, "producer", permissions or ("ingest",)).key


def meter_of(url: str, shop: Shop, **options: Any) -> Meter:
    key = options.pop("key", None) or key_of(shop)
    return Meter(api_url=url, api_key=key, handle_sigterm=False, **options)


def record(meter: Meter, shop: Shop, count: int, **more: Any) -> list[str]:
    (customer,) = shop.customers
    given = {"metadata": {"tokens": 2}, **more}
    return [meter.record("llm.completion", customer, **given) for _ in range(count)]


def eventually(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.01)


def posted_ids(shop: Shop) -> list[str]:
    """Drain, and return the ids of all posted events: each once, as the database keeps them."""
    shop.drain()
    assert shop.rows("SELECT * FROM refused_events") == []
    return sorted(str(one) for (one,) in shop.rows("SELECT event_id FROM usage_events"))


def assert_charged_once(shop: Shop, ids: list[str]) -> None:
    assert posted_ids(shop) == sorted(ids)
    assert shop.charged() == PRICE * 2 * len(ids)
    assert shop.faults() == []


def test_what_is_recorded_is_charged_exactly(api: Api, tokens: Shop) -> None:
    with meter_of(api.url, tokens, flush_interval_s=0.05) as meter:
        ids = record(meter, tokens, 1234)
        eventually(lambda: meter.stats.sent == 1234)

        assert (meter.stats.retries, meter.stats.dropped, meter.stats.unsendable) == (0, 0, 0)
    assert_charged_once(tokens, ids)


def test_an_api_that_dies_and_returns_loses_nothing_and_charges_nothing_twice(
    own_api: OwnApi, tokens: Shop
) -> None:
    """A kill and an orderly stop, while a thread records; more kills in the slow tier."""
    ids: list[str] = []
    over = threading.Event()
    options = {"flush_events": 50, "flush_interval_s": 0.01, "api_timeout_s": 2.0}
    with meter_of(own_api.url, tokens, **options) as meter:

        def traffic() -> None:
            while not over.wait(0.005):
                ids.extend(record(meter, tokens, 20))

        producer = threading.Thread(target=traffic)
        producer.start()
        try:
            for end in (own_api.kill, own_api.stop, *[own_api.kill] * of_tier(0, 2)):
                sent, retries = meter.stats.sent, meter.stats.retries
                eventually(lambda before=sent: meter.stats.sent > before + 200)  # type: ignore[misc]
                end()
                eventually(lambda before=retries: meter.stats.retries > before)  # type: ignore[misc]
                own_api.start()
        finally:
            over.set()
            producer.join()

        assert meter.flush(PATIENCE_S)
        assert (meter.stats.sent, meter.stats.dropped) == (len(ids), 0)
    assert len(ids) > 400
    assert_charged_once(tokens, ids)


def test_an_answer_that_never_comes_is_waited_for_and_asked_again(
    own_api: OwnApi, tokens: Shop
) -> None:
    with meter_of(own_api.url, tokens, flush_events=5, api_timeout_s=0.5) as meter:
        ids = record(meter, tokens, 5)
        assert meter.flush()
        own_api.send(signal.SIGSTOP)
        ids += record(meter, tokens, 5)
        eventually(lambda: meter.stats.retries)
        assert "TimeoutError" in (meter.stats.last_error or "")
        own_api.send(signal.SIGCONT)

        assert meter.flush(10)
        assert meter.stats.sent == 10
    assert_charged_once(tokens, ids)


def test_a_key_over_its_rate_limit_waits_as_long_as_it_is_told(
    limited: Limited, tokens: Shop
) -> None:
    url = limited(api_rate_limit="2/2second")
    with meter_of(url, tokens, flush_events=10) as meter:
        started = time.monotonic()
        ids = record(meter, tokens, 80)
        eventually(lambda: meter.stats.sent == 80)

        # Eight requests. Without the wait there would be a refusal every few milliseconds.
        assert time.monotonic() - started > 4
        assert 1 <= meter.stats.retries <= 10
        assert "429" in (meter.stats.last_error or "")
    assert_charged_once(tokens, ids)


def test_a_buffer_that_is_away_is_waited_for(
    database_url: str, tokens: Shop, data_dir: Path
) -> None:
    with ExitStack() as running:
        redis = running.enter_context(running_redis(data_dir, "always"))
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis.url}
        url = running.enter_context(running_api(settings_from(urls)))
        meter = running.enter_context(meter_of(url, tokens, flush_events=10))
        record(meter, tokens, 10)
        assert meter.flush()
        redis.kill()
        record(meter, tokens, 10)
        eventually(lambda: "503" in (meter.stats.last_error or ""))
        redis.start()

        assert meter.flush(PATIENCE_S)
        assert (meter.stats.sent, meter.stats.dropped, meter.stats.unsendable) == (20, 0, 0)


@pytest.mark.parametrize(("permission", "error"), [(None, "Unauthorized"), ("read", "Forbidden")])
def test_a_wrong_key_loses_nothing_while_the_process_lives(
    api: Api,
    tokens: Shop,
    caplog: pytest.LogCaptureFixture,
    permission: Permission | None,
    error: str,
) -> None:
    key = key_of(tokens, permission) if permission else f"{key_of(tokens)[:-4]}XXXX"
    with meter_of(api.url, tokens, key=key, close_timeout_s=0.1) as meter:
        record(meter, tokens, 5)
        assert not meter.flush(1)

        assert (meter.stats.pending, meter.stats.unsendable) == (5, 0)
        assert (meter.stats.last_error or "").startswith(error)
        assert not meter.close()
    assert meter.stats.dropped == 5
    assert [record.levelno for record in caplog.records if "kept" in record.message] == [
        logging.ERROR
    ]
    assert key not in caplog.text


def test_the_good_events_of_a_refused_request_are_sent(
    limited: Limited, tokens: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """The API takes less than the meter does: it names what it refuses."""
    url = limited(event_age_max_s=60)
    old = datetime.now(UTC) - timedelta(minutes=5)
    with meter_of(url, tokens, flush_interval_s=3600.0) as meter:
        ids, refused = [], []
        for number in range(300):
            if number % 2:
                refused += record(meter, tokens, 1, timestamp=old, event_id=f"old-{number}")
            else:
                ids += record(meter, tokens, 1, timestamp=datetime.now(UTC))

        assert meter.flush(10)
        assert (meter.stats.sent, meter.stats.unsendable, meter.stats.retries) == (150, 150, 0)
    for event_id in refused:
        assert f"event '{event_id}' cannot be sent: events[" in caplog.text
    assert "timestamp: is too old" in caplog.text
    assert_charged_once(tokens, ids)


def test_large_events_are_sent_in_bounded_bodies(limited: Limited, tokens: Shop) -> None:
    """Below the limit of the meter, and below a smaller one that only the API knows."""
    url = limited(api_body_bytes_max=400_000)
    large = {"tokens": 2, **{f"k{n}": "x" * 500 for n in range(40)}}
    with meter_of(url, tokens) as meter:
        ids = record(meter, tokens, 120, metadata=large)

        assert meter.flush(20)
        assert (meter.stats.sent, meter.stats.unsendable) == (120, 0)
    assert_charged_once(tokens, ids)


def test_an_event_that_no_request_can_hold_is_reported(
    limited: Limited, tokens: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    url = limited(api_body_bytes_max=10_000)
    with meter_of(url, tokens) as meter:
        ids = record(meter, tokens, 3)
        (large,) = record(meter, tokens, 1, metadata={f"k{n}": "x" * 500 for n in range(40)})
        ids += record(meter, tokens, 3)

        assert meter.flush(10)
        assert (meter.stats.sent, meter.stats.unsendable) == (6, 1)
    assert f"event '{large}' cannot be sent: body: is too large for the API" in caplog.text
    assert_charged_once(tokens, ids)


def test_a_use_that_is_recorded_twice_is_charged_once(api: Api, tokens: Shop) -> None:
    """In one batch and in two, without a time: each call has a time of its own."""
    with meter_of(api.url, tokens, flush_interval_s=3600.0) as meter:
        for _ in range(2):
            for _ in range(2):
                record(meter, tokens, 3, event_id="use-1")
                record(meter, tokens, 1)
            assert meter.flush()
        assert (meter.stats.sent, meter.stats.retries, meter.stats.unsendable) == (16, 0, 0)

    outcome = tokens.drain()
    assert (outcome.posted, outcome.duplicate, outcome.refused) == (5, 11, 0)
    assert tokens.charged() == PRICE * 2 * 5


def test_an_id_with_other_content_is_a_conflict(api: Api, tokens: Shop) -> None:
    with meter_of(api.url, tokens) as meter:
        for number in (2, 3):
            record(meter, tokens, 1, event_id="use-1", metadata={"tokens": number})
        at = datetime.now(UTC)
        for seconds in (0, 1):
            moment = at - timedelta(seconds=seconds)
            record(meter, tokens, 1, event_id="use-2", timestamp=moment)
        assert meter.flush()

    outcome = tokens.drain()
    assert (outcome.posted, outcome.refused) == (2, 2)
    assert tokens.rows("SELECT DISTINCT reason FROM refused_events") == [("conflict",)]


def test_a_forked_child_has_a_connection_of_its_own(own_api: OwnApi, tokens: Shop) -> None:
    with meter_of(own_api.url, tokens, flush_interval_s=3600.0) as meter:
        ids = record(meter, tokens, 20)
        assert meter.flush()
        ids += record(meter, tokens, 20)
        child = os.fork()
        if child == 0:
            signal.alarm(PATIENCE_S)
            try:
                record(meter, tokens, 5, event_id="child")
                os._exit(0 if meter.flush(10) and meter.stats.sent == 5 else 3)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert meter.flush()
    assert_charged_once(tokens, [*ids, "child"])


PRODUCER = """
import sys, time
from metering.accept import Meter
how, url, key, customer = sys.argv[1:]
meter = Meter(api_url=url, api_key=key, flush_interval_s=3600.0, close_timeout_s=60.0)
for n in range(100):
    meter.record("llm.completion", customer, event_id=f"event-{n}", metadata={"tokens": 2})
print("ready", flush=True)
while how == "sleeps":
    time.sleep(0.1)
"""


def run_producer(variables: Mapping[str, str], how: str, url: str, shop: Shop) -> int:
    argv = [sys.executable, "-W", "error", "-c", PRODUCER, how, url, key_of(shop)]
    with subprocess.Popen(
        [*argv, shop.customers[0]], stdout=subprocess.PIPE, env=dict(variables)
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        if how == "sleeps":
            process.terminate()
        try:
            return process.wait(PATIENCE_S)
        finally:
            process.kill()


@pytest.mark.parametrize(("how", "code"), [("exits", 0), ("sleeps", -signal.SIGTERM)])
def test_a_process_that_ends_sends_what_it_recorded(
    api: Api, tokens: Shop, variables: Mapping[str, str], how: str, code: int
) -> None:
    assert run_producer(variables, how, api.url, tokens) == code

    assert_charged_once(tokens, [f"event-{n}" for n in range(100)])


def test_tls_is_checked_against_the_authorities_of_the_machine(
    api: Api, tokens: Shop, variables: Mapping[str, str], data_dir: Path
) -> None:
    with tls_in_front_of(int(api.url.rpartition(":")[2]), data_dir) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        known = {**variables, "SSL_CERT_FILE": str(proxy.ca_file)}
        assert run_producer(known, "exits", url, tokens) == 0
        with Meter(
            api_url=url, api_key=key_of(tokens), close_timeout_s=0.1, handle_sigterm=False
        ) as stranger:
            record(stranger, tokens, 1)
            eventually(lambda: stranger.stats.retries)
            assert ssl.SSLCertVerificationError.__name__ in (stranger.stats.last_error or "")

    assert_charged_once(tokens, [f"event-{n}" for n in range(100)])


class Proxy(ThreadingHTTPServer):
    """Answers as `script` says, then as the API does; counts connections and keeps bodies."""

    daemon_threads = True

    def __init__(self, *script: tuple[int, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.bodies: list[list[str]] = []
        self.paths: set[str] = set()
        self.connections = 0
        self.hang_up_after = 0
        self._thread = threading.Thread(target=self.serve_forever)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids = [event["event_id"] for event in body["events"]]
        self.server.bodies.append(ids)
        self.server.paths.add(self.path)
        counted = orjson.dumps({"ingested_count": len(ids)})
        status, answer = self.server.script.pop(0) if self.server.script else (200, counted)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        if self.server.hang_up_after == len(self.server.bodies):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base names it
        pass


def test_only_the_count_of_the_api_releases_events() -> None:
    """A proxy in between may answer anything; none of it says that the events were taken."""
    script = (
        (502, b"<html>bad gateway</html>"),
        (200, b"<html>please log in</html>"),
        (200, b'{"ingested_count": 1}'),
        (204, b""),
        (301, b""),
        (400, b"<html>plain HTTP on a TLS port</html>"),
        (404, b'{"code": "NOT_FOUND"}'),
        (422, b'{"detail": "not ours"}'),
        (500, b'{"code": "INTERNAL_SERVER_ERROR", "message": "x"}'),
    )
    with (
        Proxy(*script) as proxy,
        Meter(
            api_url=f"http://127.0.0.1:{proxy.server_port}/pre/fix/",
            api_key="key",
            flush_events=3,
            handle_sigterm=False,
        ) as meter,
    ):
        ids = [meter.record("call", "cus_1") for _ in range(3)]
        for count in range(1, len(script) + 1):
            eventually(lambda count=count: meter.stats.retries >= count)  # type: ignore[misc]
            meter.flush(0)
        eventually(lambda: meter.stats.sent == 3)

        assert proxy.bodies == [ids] * (len(script) + 1)
        assert proxy.paths == {"/pre/fix/events/ingest"}
        assert (meter.stats.retries, meter.stats.unsendable) == (len(script), 0)


def test_a_connection_is_used_again_and_replaced_when_the_server_closed_it() -> None:
    with (
        Proxy() as proxy,
        Meter(
            api_url=f"http://127.0.0.1:{proxy.server_port}", api_key="key", handle_sigterm=False
        ) as meter,
    ):
        proxy.hang_up_after = 3
        for _ in range(6):
            meter.record("call", "cus_1")
            assert meter.flush()

        assert (proxy.connections, meter.stats.retries, len(proxy.bodies)) == (2, 0, 6)
