"""Daily partitions of usage events: made ahead, dropped after the retention. Keys stay."""

from datetime import UTC, datetime, timedelta

import pytest

from metering.usage.partitions import PartitionReport, maintain_partitions, summarize_usage
from support.tenant import Shop, event

OLD_DAY = "usage_events_20200115"


@pytest.fixture
def shop(shop: Shop) -> Shop:
    """A business in a database without partitions."""
    for name in partitions(shop):
        if name != "usage_events_default":
            with shop.sessions.transaction() as conn:
                conn.exec_driver_sql(f"DROP TABLE {name}")
    return shop


def maintain(shop: Shop, ahead_days: int = 3, retention_days: int = 30) -> PartitionReport:
    with shop.sessions.transaction() as conn:
        return maintain_partitions(conn, ahead_days=ahead_days, retention_days=retention_days)


def partitions(shop: Shop) -> list[str]:
    return [
        str(name)
        for (name,) in shop.rows(
            "SELECT inhrelid::regclass::text FROM pg_inherits"
            " WHERE inhparent = 'usage_events'::regclass ORDER BY 1"
        )
    ]


def today(shop: Shop, offset: int = 0) -> str:
    ((now,),) = shop.rows("SELECT now()")
    assert isinstance(now, datetime)
    return f"usage_events_{now.astimezone(UTC) + timedelta(days=offset):%Y%m%d}"


def partitions_of_usage(shop: Shop) -> list[str]:
    """The partition of each usage event."""
    return [str(name) for (name,) in shop.rows("SELECT tableoid::regclass FROM usage_events")]


def post_event(shop: Shop) -> None:
    shop.keep_free()
    shop.send(event(shop.customers[0], {"tokens": 5}, event_id="evt"))
    shop.drain()


def age_usage(shop: Shop, posted_at: str) -> None:
    shop.rows(f"UPDATE usage_events SET posted_at = '{posted_at}' RETURNING 1")


def create_old_partition(shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        conn.exec_driver_sql(
            f"CREATE TABLE {OLD_DAY} PARTITION OF usage_events"
            " FOR VALUES FROM ('2020-01-15') TO ('2020-01-16')"
        )


def test_partitions_of_today_and_the_days_ahead_are_made(shop: Shop) -> None:
    report = maintain(shop, ahead_days=3)

    assert report == PartitionReport(made=4, dropped=0)
    assert partitions(shop) == [*(today(shop, n) for n in range(4)), "usage_events_default"]


def test_a_second_run_finds_nothing_to_do(shop: Shop) -> None:
    maintain(shop)

    assert maintain(shop) == PartitionReport(made=0, dropped=0)


def test_a_usage_event_is_in_the_partition_of_its_day(shop: Shop) -> None:
    maintain(shop)

    post_event(shop)

    assert partitions_of_usage(shop) == [today(shop)]


def test_an_event_without_a_partition_stays_in_the_default_partition(shop: Shop) -> None:
    post_event(shop)

    report = maintain(shop, ahead_days=3)

    assert report.made == 3
    assert (partitions_of_usage(shop), shop.faults()) == (["usage_events_default"], [])


def test_a_day_after_the_retention_is_dropped_with_its_events(shop: Shop) -> None:
    create_old_partition(shop)
    post_event(shop)
    age_usage(shop, "2020-01-15 12:00Z")
    before = partitions_of_usage(shop)

    report = maintain(shop)

    assert (before, report.dropped) == ([OLD_DAY], 1)
    assert (OLD_DAY in partitions(shop), partitions_of_usage(shop), shop.faults()) == (
        False,
        [],
        [],
    )


def test_old_events_of_the_default_partition_are_deleted(shop: Shop) -> None:
    post_event(shop)
    age_usage(shop, "2020-01-15 12:00Z")

    maintain(shop)

    assert partitions_of_usage(shop) == []


def test_the_last_day_of_the_retention_is_kept(shop: Shop) -> None:
    maintain(shop, ahead_days=0)

    report = maintain(shop, ahead_days=1, retention_days=0)

    assert report == PartitionReport(made=1, dropped=0)


def test_an_event_sent_again_after_its_row_was_dropped_is_still_a_duplicate(shop: Shop) -> None:
    shop.meter("tokens", {"USD": "1"})
    create_old_partition(shop)
    post_event(shop)
    age_usage(shop, "2020-01-15 12:00Z")
    maintain(shop)

    shop.send(event(shop.customers[0], {"tokens": 5}, event_id="evt"))
    outcome = shop.drain()

    assert (outcome.posted, outcome.duplicate) == (0, 1)
    assert (shop.wallet().balance_minor, shop.faults()) == (-5, [])


def test_the_second_of_two_runs_at_once_does_nothing(shop: Shop) -> None:
    with shop.sessions.transaction() as conn:
        first = maintain_partitions(conn, ahead_days=3, retention_days=30)
        second = maintain(shop)

    assert (first.made, second) == (4, PartitionReport(made=0, dropped=0))


def test_new_rows_are_added_to_the_index_of_batches(shop: Shop) -> None:
    maintain(shop)
    with shop.sessions.transaction() as conn:
        summarize_usage(conn)
        conn.exec_driver_sql(
            "INSERT INTO usage_events SELECT %s, 'e' || n, 'cus', 'llm', now(), '{}', NULL, 0, 1"
            " FROM generate_series(1, 20000) n",
            (shop.business_id,),
        )

    with shop.sessions.transaction() as conn:
        added = summarize_usage(conn)
        again = summarize_usage(conn)

    assert added > 1
    assert again == 0


def test_the_summary_of_a_batch_is_deleted_with_its_rows(shop: Shop) -> None:
    maintain(shop)
    post_event(shop)
    kept = shop.rows("SELECT business_id FROM usage_of_businesses")
    shop.rows("UPDATE usage_of_businesses SET posted_at = '2020-01-15' RETURNING 1")

    maintain(shop)

    assert kept == [(shop.business_id,)]
    assert shop.rows("SELECT business_id FROM usage_of_businesses") == []
