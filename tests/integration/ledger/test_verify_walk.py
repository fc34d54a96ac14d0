"""The scheduled walk: each short slice continues the last one, until the walk is complete."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from sqlalchemy import Connection, text

from metering.errors import GullakError
from metering.invariants import Fault
from metering.verify import walk
from metering.verify.schedule import Slice, continue_walk
from support.tenant import Shop, event


@pytest.fixture
def traffic(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Twenty wallets in pages of two; ten batches, old enough to be counted page by page."""
    monkeypatch.setattr(walk, "STAGES", [stage._replace(rows=2) for stage in walk.STAGES])
    shop.meter()
    with shop.sessions.transaction() as conn:
        for _ in range(9):
            shop.add_customer(conn)
    for customer in shop.customers:
        shop.send(event(customer), event(customer))
        shop.drain()
    age_batches(shop)
    return shop


def age_batches(shop: Shop) -> None:
    change(shop, "UPDATE usage_batches SET created_at = created_at - interval '1 hour'")


def change(shop: Shop, statement: str) -> None:
    with shop.sessions.transaction() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text(statement))


def slices(shop: Shop, since: int = 0) -> Iterator[Slice]:
    """Run slices of one page each until the walk is complete."""
    while (done := continue_walk(shop.sessions.snapshot, since, 0)).pages:
        yield done


def test_a_walk_runs_in_slices_of_a_page_until_it_is_complete(traffic: Shop) -> None:
    done = list(slices(traffic))

    assert len(done) > 10 + 5  # pages of wallets, of batches, and the ends of the stages
    assert {each.pages for each in done} == {1}
    assert [each.completed_at for each in done[:-1]] == [None] * (len(done) - 1)
    assert done[-1].completed_at is not None
    assert done[-1].fault_count == 0


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_fault_on_any_page_is_counted_until_a_later_walk_is_complete_without_it(
    traffic: Shop, place: str
) -> None:
    order = "ASC" if place == "first" else "DESC"
    which = f"wallet_id = (SELECT wallet_id FROM wallets ORDER BY wallet_id {order} LIMIT 1)"
    change(traffic, f"UPDATE wallets SET alert_sequence = alert_sequence + 1 WHERE {which}")

    first = list(slices(traffic))
    change(traffic, f"UPDATE wallets SET alert_sequence = alert_sequence - 1 WHERE {which}")
    second = rest_of_new_walk(traffic)

    assert sum(len(each.faults) for each in first) == first[-1].fault_count > 0
    assert [each.fault_count for each in second[:-1]] == [first[-1].fault_count] * (len(second) - 1)
    assert second[-1].fault_count == 0


def rest_of_new_walk(shop: Shop) -> list[Slice]:
    change(shop, "UPDATE verify_walk SET started_at = started_at - interval '61 minutes'")
    return list(slices(shop))


def test_usage_during_a_walk_is_no_fault(traffic: Shop) -> None:
    customer = traffic.customers[0]
    faults: list[Fault] = []

    for done in slices(traffic):
        faults += done.faults
        traffic.send(event(customer), event(customer))
        traffic.drain()

    assert faults == []


def test_a_batch_with_edited_counts_is_found(traffic: Shop) -> None:
    change(traffic, "UPDATE usage_batches SET posted_count = posted_count + 1 WHERE batch_id = 3")

    found = [fault for done in slices(traffic) for fault in done.faults]

    assert [fault.invariant for fault in found] == ["every accepted event ended once"]


def test_a_slice_that_fails_is_repeated(traffic: Shop) -> None:
    @contextmanager
    def dying() -> Iterator[Connection]:
        with traffic.sessions.snapshot() as conn:
            yield conn
            raise GullakError("killed before the commit")

    continue_walk(traffic.sessions.snapshot, 0, 0)
    before = traffic.rows("SELECT place::text FROM verify_walk")
    with pytest.raises(GullakError):
        continue_walk(dying, 0, 0)

    assert traffic.rows("SELECT place::text FROM verify_walk") == before
    assert list(slices(traffic))[-1].completed_at is not None


def test_two_workers_do_not_run_the_same_slice(traffic: Shop) -> None:
    with traffic.sessions.snapshot() as conn:
        conn.execute(text("SELECT pg_advisory_xact_lock(1735747701, 0)"))

        assert continue_walk(traffic.sessions.snapshot, 0, 10).pages == 0


def test_a_walk_is_due_at_each_start_and_an_hour_after_the_last_start(traffic: Shop) -> None:
    began_before_that = int(time.time()) - 2

    assert list(slices(traffic))
    assert not list(slices(traffic, since=began_before_that))
    change(traffic, "UPDATE verify_walk SET started_at = started_at - interval '10 seconds'")
    assert list(slices(traffic, since=began_before_that))
    assert not list(slices(traffic, since=began_before_that))
    assert rest_of_new_walk(traffic)


def test_no_check_of_a_page_reads_a_whole_table(traffic: Shop) -> None:
    page = {"after": "", "upto": "wal_0"}
    with traffic.sessions.transaction() as conn:
        conn.exec_driver_sql("SET LOCAL enable_seqscan = off")
        quick = [each for each in walk.INVARIANTS if each.table == "wallets" and not each.deep]
        assert quick
        for invariant in quick:
            assert isinstance(invariant.check, partial)
            query = invariant.check.keywords["query"].text
            plan = "\n".join(conn.execute(text(f"EXPLAIN {query}"), page).scalars())
            assert "Seq Scan" not in plan, plan
