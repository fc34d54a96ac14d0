"""The outbox, and replays from it."""

import time
from functools import partial

import pytest

from metering.clock import utc_now
from metering.errors import InvalidInputError
from metering.webhook import endpoints
from metering.webhook.dead_letter import replay
from metering.webhook.deliver import DeliveryReport, deliver_due
from metering.webhook.outbox import Notice, publish
from metering.webhook.retry import ATTEMPTS_PER_ROUND
from support.webhook_receiver import Bench, statements_of

pytest_plugins = ("support.webhook_fixtures",)


# --- the outbox -----------------------------------------------------------------------------------


def test_a_rolled_back_webhook_is_not_sent(bench: Bench) -> None:
    bench.receiver()

    def publish_and_fail() -> None:
        with bench.sessions.transaction() as conn:
            publish(conn, [Notice(bench.business_id, "credit.added", {})], utc_now())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish_and_fail()

    assert bench.deliver() == DeliveryReport(0, 0, 0)


def test_publish_takes_two_statements_for_any_number_of_notices(bench: Bench) -> None:
    bench.receiver()
    notice = Notice(bench.business_id, "credit.added", {"n": 1})

    counts = [
        statements_of(
            bench.sessions, partial(publish, notices=[notice] * size, occurred_at=utc_now())
        )
        for size in (0, 1, 100)
    ]
    assert counts == [0, 2, 2]


def test_an_endpoint_receives_only_its_types_of_its_own_business(bench: Bench) -> None:
    other = bench.new_business()
    _, every = bench.receiver()
    _, low_only = bench.receiver(filter_types=["credit.balance_low"])
    _, foreign = bench.receiver(business_id=other)
    [added] = bench.publish(type_="credit.added")
    [low] = bench.publish(type_="credit.balance_low")

    assert bench.deliver().delivered == 3
    assert sorted(every.ids) == sorted([added, low])
    assert low_only.ids == [low]
    assert foreign.ids == []


def test_ids_have_the_order_of_the_notices(bench: Bench) -> None:
    ids = bench.publish(5)

    rows = bench.run(
        "SELECT webhook_event_id, data->>'n' AS n, data->>'payload_type' AS payload_type"
        " FROM webhook_events WHERE business_id = :b",
        b=bench.business_id,
    )
    assert {row.webhook_event_id: int(row.n) for row in rows} == dict(
        zip(ids, range(5), strict=True)
    )
    assert {row.payload_type for row in rows} == {"CreditLedgerEntry"}


def test_a_posting_does_not_wait_for_the_deletion_of_an_endpoint(bench: Bench) -> None:
    doomed, _ = bench.receiver()
    _, kept = bench.receiver()
    with bench.sessions.transaction() as conn:
        endpoints.delete_endpoint(conn, bench.business_id, doomed.endpoint_id)
        started = time.monotonic()
        bench.publish()
        assert time.monotonic() - started < 1

    assert bench.deliver().delivered == 1
    assert len(kept.ids) == 1


# --- replay ---------------------------------------------------------------------------------------


def test_a_replay_of_a_dead_letter_has_the_whole_schedule_again(bench: Bench) -> None:
    _, inbox = bench.receiver()
    inbox.answers(500)
    [event_id] = bench.publish()
    for _ in range(3):
        bench.deliver(disable_after=99)
        bench.make_due()
    assert bench.deliveries() == [("dead", 3)]
    with bench.sessions.transaction() as conn:
        assert replay(conn, webhook_event_id=event_id) == 1
        assert replay(conn, webhook_event_id=event_id) == 0  # it is due: nothing more to do

    assert bench.deliver(disable_after=99) == DeliveryReport(0, 1, 0)
    inbox.answers(200)
    bench.make_due()
    assert bench.deliver() == DeliveryReport(1, 0, 0)
    assert [row.attempt for row in bench.attempts()] == [
        1,
        2,
        3,
        ATTEMPTS_PER_ROUND + 1,
        ATTEMPTS_PER_ROUND + 2,
    ]
    assert len(set(inbox.bodies)) == 1


def test_a_replay_by_time_takes_the_webhooks_of_that_time(bench: Bench) -> None:
    made, inbox = bench.receiver()
    [before] = bench.publish()
    middle = utc_now()
    [after] = bench.publish()
    bench.deliver()
    with bench.sessions.transaction() as conn:
        again = partial(replay, conn, business_id=bench.business_id, endpoint_id=made.endpoint_id)
        assert again(since=middle, until=middle) == 0
        assert again(since=middle) == 1
        assert replay(conn, business_id=bench.new_business(), webhook_event_id=before) == 0

    assert bench.deliver() == DeliveryReport(1, 0, 0)
    assert inbox.ids.count(before) == 1
    assert inbox.ids.count(after) == 2


def test_a_replay_does_not_touch_deliveries_in_flight(bench: Bench) -> None:
    _, inbox = bench.receiver()
    found: list[int] = []
    [event_id] = bench.publish()

    def ask_for_a_replay(_reached: str) -> None:
        if len(found) == 2:  # first after the claim, then after the answer
            return
        with bench.sessions.transaction() as conn:
            found.append(replay(conn, webhook_event_id=event_id))

    deliver_due(bench.sessions.transaction, bench.sender, bench.policy, ask_for_a_replay)
    assert found == [0, 0]
    assert len(inbox.ids) == 1
    assert bench.deliveries() == [("delivered", 1)]


def test_a_replay_of_everything_is_refused(bench: Bench) -> None:
    with bench.sessions.transaction() as conn, pytest.raises(InvalidInputError):
        replay(conn, business_id=bench.business_id)
