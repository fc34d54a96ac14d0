"""Delivery on a real Postgres, to a real receiver that verifies signatures."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import psycopg
import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from metering.webhook import endpoints
from metering.webhook.dead_letter import dead_letters
from metering.webhook.deliver import DeliveryReport, deliver_due
from metering.webhook.send import HttpSender
from support.webhook_receiver import POLICY, Bench, statements_of

pytest_plugins = ("support.webhook_fixtures",)


# --- one delivery ---------------------------------------------------------------------------------


def test_a_webhook_is_signed_delivered_once_and_recorded(bench: Bench) -> None:
    _, inbox = bench.receiver()
    [event_id] = bench.publish()

    assert bench.deliver() == DeliveryReport(1, 0, 0)
    assert bench.deliver() == DeliveryReport(0, 0, 0)
    assert inbox.ids == [event_id]
    [(headers, body)] = inbox.requests
    assert headers["X-Token"] == "ours"
    assert json.loads(body)["data"] == {
        "payload_type": "CreditLedgerEntry",
        "n": 0,
        "text": "₹ \u2028",
    }
    [attempt] = bench.attempts()
    assert (attempt.attempt, attempt.status_code, attempt.error) == (1, 204, None)
    assert bench.deliveries() == [("delivered", 1)]


def test_a_failure_is_tried_again_with_the_same_id_and_body(bench: Bench) -> None:
    _, inbox = bench.receiver()
    inbox.answers(500, 200)
    bench.publish()

    assert bench.deliver() == DeliveryReport(0, 1, 0)
    assert 4 < bench.due_in_s() < 6
    assert bench.deliver() == DeliveryReport(0, 0, 0)
    bench.make_due()
    assert bench.deliver() == DeliveryReport(1, 0, 0)
    assert len(set(inbox.ids)) == 1
    assert len(inbox.bodies) == 2
    assert len(set(inbox.bodies)) == 1
    assert [row.status_code for row in bench.attempts()] == [500, 200]


def test_a_delivery_is_a_dead_letter_after_the_schedule(bench: Bench) -> None:
    made, inbox = bench.receiver()
    inbox.answers(500)
    [event_id] = bench.publish()
    reports = []
    for _ in range(3):
        reports.append(bench.deliver(disable_after=99))
        bench.make_due()

    assert reports == [DeliveryReport(0, 1, 0), DeliveryReport(0, 1, 0), DeliveryReport(0, 0, 1)]
    assert bench.deliver() == DeliveryReport(0, 0, 0)
    with bench.sessions.transaction() as conn:
        [letter] = dead_letters(conn, bench.business_id, limit=10)
        assert dead_letters(conn, bench.business_id, 10, (event_id, made.endpoint_id)) == []
        assert dead_letters(conn, bench.new_business(), limit=10) == []
    assert (letter.webhook_event_id, letter.endpoint_id) == (event_id, made.endpoint_id)
    assert (letter.attempt, letter.status_code, letter.error) == (3, 500, "answered 500")


def test_a_refused_connection_is_a_failure_with_a_reason(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bench.receiver(url=f"http://127.0.0.1:{port}/")
    bench.publish()

    assert bench.deliver() == DeliveryReport(0, 1, 0)
    [attempt] = bench.attempts()
    assert (attempt.status_code, attempt.error) == (None, "the connection was refused or failed")


def test_private_receivers_are_refused_unless_allowed(bench: Bench) -> None:
    _, inbox = bench.receiver()
    bench.publish()
    strict = HttpSender(timeout_s=1)

    report = deliver_due(bench.sessions.transaction, strict, bench.policy)
    strict.close()
    assert report == DeliveryReport(0, 1, 0)
    assert inbox.ids == []
    assert "not public" in bench.attempts()[0].error


def test_retry_after_is_respected_up_to_a_day(bench: Bench) -> None:
    _, inbox = bench.receiver()
    inbox.answers(429, headers={"Retry-After": "1000"})
    bench.publish()
    bench.deliver()
    assert 990 < bench.due_in_s() < 1001

    inbox.answers(503, headers={"Retry-After": "99999999"})
    bench.make_due()
    bench.deliver()
    assert 86_390 < bench.due_in_s() < 86_401


def test_a_redirect_is_a_failure_and_is_not_followed(bench: Bench) -> None:
    _, target = bench.receiver(filter_types=["webhook.test"])
    _, inbox = bench.receiver()
    inbox.answers(302, headers={"Location": bench.server.url_for("/elsewhere")})
    bench.server.expect_request("/elsewhere").respond_with_handler(target)
    bench.publish()

    assert bench.deliver() == DeliveryReport(0, 1, 0)
    [attempt] = bench.attempts()
    reason = "answered 302: redirects are not followed"
    assert (attempt.status_code, attempt.error) == (302, reason)
    assert target.ids == []


def test_cookies_of_a_receiver_are_not_kept(bench: Bench) -> None:
    _, inbox = bench.receiver()
    inbox.answers(200, headers={"Set-Cookie": "a=1; Path=/"})
    bench.publish(3)
    bench.deliver(per_endpoint_max=1)

    assert len(inbox.requests) == 3
    assert not any("Cookie" in headers for headers, _ in inbox.requests)


# --- claims ---------------------------------------------------------------------------------------


def test_two_runs_at_once_send_each_webhook_once(bench: Bench) -> None:
    _, inbox = bench.receiver()
    ids = bench.publish(60)
    reports: list[DeliveryReport] = []
    runs = [
        threading.Thread(target=lambda: reports.append(bench.deliver(per_endpoint_max=7)))
        for _ in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()

    assert sorted(inbox.ids) == sorted(ids)
    assert sum(report.delivered for report in reports) == 60
    assert bench.deliveries() == [("delivered", 1)] * 60


def test_a_delivery_is_sent_again_if_its_run_dies_after_the_call(bench: Bench) -> None:
    _, inbox = bench.receiver()
    bench.publish()

    def die(reached: str) -> None:
        if reached == "after_http":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver_due(bench.sessions.transaction, bench.sender, bench.policy, die)
    assert bench.attempts() == []
    assert bench.deliver() == DeliveryReport(0, 0, 0)  # the lease holds
    assert POLICY.timeout_s < bench.due_in_s() <= POLICY.lease_s
    bench.make_due()
    assert bench.deliver() == DeliveryReport(1, 0, 0)
    assert len(inbox.ids) == 2
    assert len(set(inbox.ids)) == 1
    assert len(set(inbox.bodies)) == 1


def test_a_delivery_is_sent_if_its_run_died_before_the_call(bench: Bench) -> None:
    _, inbox = bench.receiver()
    bench.publish()

    def die(_reached: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver_due(bench.sessions.transaction, bench.sender, bench.policy, die)
    bench.make_due()
    assert bench.deliver() == DeliveryReport(1, 0, 0)
    assert len(inbox.ids) == 1


def test_a_failure_after_the_lease_does_not_undo_a_later_success(bench: Bench) -> None:
    _, inbox = bench.receiver()
    inbox.answers(500, 200)
    bench.publish()

    def be_overtaken(reached: str) -> None:
        if reached == "after_http":
            bench.make_due()
            assert bench.deliver() == DeliveryReport(1, 0, 0)

    late = deliver_due(bench.sessions.transaction, bench.sender, bench.policy, be_overtaken)
    assert late == DeliveryReport(0, 1, 0)
    assert bench.deliveries() == [("delivered", 2)]
    assert [row.status_code for row in bench.attempts()] == [500, 200]


def test_the_statements_of_a_run_do_not_grow_with_its_batch(bench: Bench) -> None:
    counts = []
    for size in (1, 15):
        _, inbox = bench.receiver()
        bench.publish(size)
        gathered = statements_of(bench.sessions, lambda _conn: bench.deliver())
        counts.append(gathered)
        bench.run("UPDATE webhook_endpoints SET disabled_at = now()")
        assert len(inbox.ids) == size

    # Answers may come in two or three waves, of five statements each with the claim.
    assert counts[1] <= counts[0] + 15


def test_an_endpoint_that_is_deleted_during_its_call_is_no_error(bench: Bench) -> None:
    made, inbox = bench.receiver()
    bench.publish()

    def delete(reached: str) -> None:
        if reached == "after_http":
            with bench.sessions.transaction() as conn:
                endpoints.delete_endpoint(conn, bench.business_id, made.endpoint_id)

    deliver_due(bench.sessions.transaction, bench.sender, bench.policy, delete)
    assert len(inbox.ids) == 1
    assert bench.attempts() == []


# --- while the server fails -----------------------------------------------------------------------


@pytest.mark.parametrize("table", ["webhook_attempts", "webhook_endpoints", "webhook_deliveries"])
def test_a_server_that_cannot_record_an_attempt_does_not_count_it(bench: Bench, table: str) -> None:
    _, inbox = bench.receiver()
    inbox.answers(*([500] * 12))
    bench.publish()
    runs = 2 * (len(bench.policy.retry_s) + 1)
    bench.run(
        "CREATE FUNCTION zz_fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION USING ERRCODE = '53100'; END $$"
    )
    # A claim moves only `due_at`. Only the record of an attempt ends a delivery.
    when = {
        "webhook_attempts": "INSERT ON webhook_attempts",
        "webhook_endpoints": "UPDATE ON webhook_endpoints",
        "webhook_deliveries": "UPDATE OF status ON webhook_deliveries",
    }
    bench.run(f"CREATE TRIGGER zz_fault BEFORE {when[table]} EXECUTE FUNCTION zz_fault()")
    for _ in range(runs):
        with pytest.raises(DBAPIError):
            bench.deliver(claim_for_s=0.1)
        bench.make_due()
    bench.run(f"DROP TRIGGER zz_fault ON {table}")

    report = bench.deliver()

    assert report == DeliveryReport(0, 1, 0)
    assert [status for status, _ in bench.deliveries()] == ["pending"]


def test_a_temporary_fault_during_a_run_causes_no_second_call(bench: Bench) -> None:
    _, inbox = bench.receiver()
    [event_id] = bench.publish()
    failures = iter([psycopg.errors.DiskFull()] * 3)
    calls = count()

    @contextmanager
    def transaction() -> Iterator[Connection]:
        with bench.sessions.transaction() as conn:
            yield conn
            if next(calls) >= 1 and (fault := next(failures, None)):  # the claim gets through
                raise fault

    report = deliver_due(transaction, bench.sender, bench.policy)

    assert (report, inbox.ids) == (DeliveryReport(1, 0, 0), [event_id])
