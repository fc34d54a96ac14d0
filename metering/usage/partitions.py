"""Daily partitions of kept usage: made ahead, dropped after the retention. Keys stay for ever."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from sqlalchemy import Connection

from metering.db import driver
from metering.debit.statements import DELETE_KINDS
from metering.usage import statements

PREFIX: Final = "usage_events_"
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """How many daily partitions were made and dropped."""

    made: int
    dropped: int


def maintain_partitions(
    conn: Connection, *, ahead_days: int, retention_days: int
) -> PartitionReport:
    """Make the partitions of today and the days ahead; drop those older than the retention.

    If another run holds the lock, this one does nothing.
    """
    if not conn.execute(statements.TRY_MAINTENANCE).scalar_one():
        return PartitionReport(0, 0)
    today: date = conn.execute(statements.TODAY).scalar_one()
    suffixes = [name.removeprefix(PREFIX) for name in conn.execute(statements.PARTITIONS).scalars()]
    days = [date.fromisoformat(suffix) for suffix in suffixes if suffix.isdigit()]
    wanted = [today + DAY * offset for offset in range(ahead_days + 1)]
    made = sum(_make(conn, day) for day in wanted if day not in days)
    first_kept = today - DAY * retention_days
    old = [day for day in days if day < first_kept]
    for day in old:
        driver(conn).execute(f"DROP TABLE {PREFIX}{day:%Y%m%d}")
    for statement in (statements.CLEAR_DEFAULT, statements.CLEAR_NOTES, DELETE_KINDS):
        conn.execute(statement, {"first": first_kept})
    return PartitionReport(made, len(old))


def summarize_usage(conn: Connection) -> int:
    """Add new rows to the index of kept usage; return how many block ranges were added.

    Postgres itself does this only in a vacuum, which is rare for tables that are only appended to.
    """
    today: date = conn.execute(statements.TODAY).scalar_one()
    names = [f"{PREFIX}{day:%Y%m%d}" for day in (today, today - DAY)]
    added: int = conn.execute(statements.SUMMARIZE, {"names": names}).scalar_one()
    return added


def _make(conn: Connection, day: date) -> bool:
    """Make one day's partition, unless the default partition already holds rows of that day."""
    following = day + DAY
    if conn.execute(statements.DEFAULT_HOLDS, {"first": day, "last": following}).scalar_one():
        return False
    driver(conn).execute(
        f"CREATE TABLE IF NOT EXISTS {PREFIX}{day:%Y%m%d} PARTITION OF usage_events"
        f" FOR VALUES FROM ('{day}') TO ('{following}')"
    )
    return True
