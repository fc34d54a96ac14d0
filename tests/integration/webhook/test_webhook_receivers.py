"""Receivers that hang, send slowly or never end are limited and do not delay others."""

import socket
import threading
import time
from datetime import timedelta

from metering.clock import utc_now
from metering.webhook import endpoints
from metering.webhook.dead_letter import replay
from metering.webhook.deliver import DeliveryReport, count_due
from metering.webhook.send import BODY_READ_MAX_S
from support.webhook_receiver import POLICY, SHORT_TIMEOUT_S, Bench, raw_receiver

pytest_plugins = ("support.webhook_fixtures",)


# --- bad receivers --------------------------------------------------------------------------------


def test_an_endless_body_is_cut_off_and_its_status_counts(bench: Bench) -> None:
    def endless(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            peer.sendall(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")

    with raw_receiver(endless) as url:
        bench.receiver(url=url)
        bench.publish()
        started = time.monotonic()
        assert bench.deliver() == DeliveryReport(1, 0, 0)
        assert time.monotonic() - started < BODY_READ_MAX_S + 3


def test_a_slow_body_is_cut_off_after_a_moment(bench: Bench) -> None:
    def trickle(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            peer.sendall(b"x")
            time.sleep(0.1)

    with raw_receiver(trickle) as url:
        bench.receiver(url=url)
        bench.publish()
        started = time.monotonic()
        assert bench.deliver() == DeliveryReport(1, 0, 0)
        assert time.monotonic() - started < BODY_READ_MAX_S + 3


def test_a_slow_head_is_cut_off_at_the_deadline(bench: Bench) -> None:
    def slow_loris(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(100):
            peer.sendall(b"x-a: b\r\n")
            time.sleep(0.1)

    with raw_receiver(slow_loris) as url, bench.impatient():
        bench.receiver(url=url)
        bench.publish()
        started = time.monotonic()
        assert bench.deliver() == DeliveryReport(0, 1, 0)
        assert time.monotonic() - started < SHORT_TIMEOUT_S + 3
    assert bench.attempts()[0].error == "no answer within 2 s"


def test_an_endless_head_and_other_nonsense_are_failures(bench: Bench) -> None:
    def endless_head(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nx-a: ")
        while True:
            peer.sendall(b"y" * 4096)

    def nonsense(peer: socket.socket) -> None:
        peer.sendall(b"\x00\xff SSH-2.0\r\n\r\n")

    with raw_receiver(endless_head) as first, raw_receiver(nonsense) as second:
        bench.receiver(url=first)
        bench.receiver(url=second)
        bench.publish()
        assert bench.deliver() == DeliveryReport(0, 2, 0)
    assert {row.error for row in bench.attempts()} == {"the answer was not HTTP"}


def test_a_receiver_that_hangs_does_not_delay_another(bench: Bench) -> None:
    def hang(peer: socket.socket) -> None:
        peer.recv(1)  # nothing comes: until the sender hangs up

    _, prompt = bench.receiver()
    with raw_receiver(hang) as url, bench.impatient():
        bench.receiver(url=url)
        bench.publish(30)
        done_at: list[float] = []
        started = time.monotonic()

        def watch() -> None:
            while len(prompt.ids) < 30 and time.monotonic() - started < 10:
                time.sleep(0.01)
            done_at.append(time.monotonic() - started)

        watcher = threading.Thread(target=watch)
        watcher.start()
        report = bench.deliver()
        watcher.join()

    assert len(prompt.ids) == 30
    assert done_at[0] < SHORT_TIMEOUT_S
    assert report.delivered == 30


def test_a_failing_endpoint_gets_one_call_at_a_time(bench: Bench) -> None:
    made, _ = bench.receiver(url="http://127.0.0.1:9/")
    bench.publish(10)
    bench.run(
        "UPDATE webhook_endpoints SET failures_in_row = 3, failing_since = now()"
        " WHERE endpoint_id = :e",
        e=made.endpoint_id,
    )
    with bench.sessions.transaction() as conn:
        assert count_due(conn, bench.policy, 100) == 1
    # Calls of another run count too.
    bench.run(
        "UPDATE webhook_deliveries SET attempts = 1, due_at = now() + interval '5 s'"
        " WHERE webhook_event_id = (SELECT min(webhook_event_id) FROM webhook_deliveries"
        "   WHERE endpoint_id = :e)",
        e=made.endpoint_id,
    )
    with bench.sessions.transaction() as conn:
        assert count_due(conn, bench.policy, 100) == 0
    assert bench.deliver() == DeliveryReport(0, 0, 0)


# --- the record of an endpoint --------------------------------------------------------------------


def test_410_disables_an_endpoint_at_once_and_enabling_it_sends_the_waiting_webhooks(
    bench: Bench,
) -> None:
    made, inbox = bench.receiver()
    inbox.answers(410, 200)
    bench.publish()

    assert bench.deliver() == DeliveryReport(0, 1, 0)
    stopped = bench.endpoint(made.endpoint_id)
    assert stopped.disabled_at is not None
    assert stopped.disabled_reason == "the receiver answered 410 Gone"
    bench.make_due()
    assert bench.deliver() == DeliveryReport(0, 0, 0)
    with bench.sessions.transaction() as conn:
        enabled = endpoints.enable_endpoint(conn, bench.business_id, made.endpoint_id)
    assert (enabled.disabled_at, enabled.disabled_reason, enabled.failures_in_row) == (
        None,
        None,
        0,
    )
    assert bench.deliver() == DeliveryReport(1, 0, 0)


def test_many_failures_disable_an_endpoint_only_after_a_day(bench: Bench) -> None:
    made, inbox = bench.receiver()
    inbox.answers(500)
    bench.publish(POLICY.disable_after)
    bench.deliver()

    failing = bench.endpoint(made.endpoint_id)
    assert failing.failures_in_row == POLICY.disable_after
    assert failing.disabled_at is None  # a burst is not a day
    bench.run(
        "UPDATE webhook_endpoints SET failing_since = now() - interval '25 h'"
        " WHERE endpoint_id = :e",
        e=made.endpoint_id,
    )
    bench.make_due()
    bench.deliver()
    stopped = bench.endpoint(made.endpoint_id)
    assert stopped.disabled_at is not None
    assert stopped.disabled_reason == "5 attempts in a row failed"


def test_one_success_resets_the_failures(bench: Bench) -> None:
    made, inbox = bench.receiver()
    inbox.answers(500, 200)
    bench.publish()
    bench.deliver()
    assert bench.endpoint(made.endpoint_id).failures_in_row == 1

    bench.make_due()
    bench.deliver()
    cleared = bench.endpoint(made.endpoint_id)
    assert (cleared.failures_in_row, cleared.failing_since) == (0, None)


def test_a_replay_sends_the_webhooks_of_the_time_when_an_endpoint_was_disabled(
    bench: Bench,
) -> None:
    made, inbox = bench.receiver()
    with bench.sessions.transaction() as conn:
        endpoints.disable_endpoint(conn, bench.business_id, made.endpoint_id)
    [missed] = bench.publish()
    assert bench.deliveries() == []
    with bench.sessions.transaction() as conn:
        endpoints.enable_endpoint(conn, bench.business_id, made.endpoint_id)
        assert replay(conn, endpoint_id=made.endpoint_id) == 0
        assert replay(conn, endpoint_id=made.endpoint_id, since=utc_now() - timedelta(hours=1)) == 1

    assert bench.deliver() == DeliveryReport(1, 0, 0)
    assert inbox.ids == [missed]
