"""Clean-up of old webhooks, provider events and refused events, a page per transaction.

Entries, lots, purchases, payments and event keys stay for ever, because money depends on them. So
does everything that still waits for a person.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Final

from sqlalchemy import Connection, TextClause
from ulid import ULID

from metering.clock import utc_now
from metering.db import Transactions
from metering.retention import statements

PAGE_ROWS: Final = 1_000

Pruner = Callable[[Connection], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many days each kind of row is kept."""

    webhook_days: int
    provider_body_days: int
    refused_days: int


def prune(transaction: Transactions, keep: Retention, slice_ms: int) -> dict[str, int]:
    """Delete what is too old, for `slice_ms`; return rows by kind. Safe twice and at once."""
    ends_at = monotonic() + slice_ms / 1000
    return {
        kind: sum(_pages(transaction, pruner, ends_at))
        for kind, pruner in (
            ("webhooks", lambda conn: _webhooks(conn, keep.webhook_days)),
            ("bodies", lambda conn: _rows(conn, statements.BLANK_BODIES, keep.provider_body_days)),
            ("refused", lambda conn: _rows(conn, statements.DELETE_REFUSED, keep.refused_days)),
        )
    }


def _pages(transaction: Transactions, pruner: Pruner, ends_at: float) -> Iterator[int]:
    """Do page after page: at least one, so that every kind gets its turn."""
    while True:
        with transaction() as conn:
            rows = pruner(conn)
        yield rows
        if rows < PAGE_ROWS or monotonic() >= ends_at:
            return


def _webhooks(conn: Connection, days: int) -> int:
    oldest = ULID.from_datetime(utc_now() - timedelta(days=days))
    # The first id of that moment: its random part is all zeros.
    before = f"msg_{str(oldest)[:10]}{'0' * 16}"
    page = {"before": before, "page": PAGE_ROWS}
    ids = list(conn.execute(statements.OLD_WEBHOOKS, page).scalars())
    if ids:
        conn.execute(statements.DELETE_DELIVERIES, {"webhook_event_ids": ids})
        conn.execute(statements.DELETE_WEBHOOKS, {"webhook_event_ids": ids})
    return len(ids)


def _rows(conn: Connection, statement: TextClause, days: int) -> int:
    return conn.execute(statement, {"days": days, "page": PAGE_ROWS}).rowcount
