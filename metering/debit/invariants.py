"""The invariants of batches: where accepted events ended, and the costs of their entries."""

from collections.abc import Iterator, Mapping
from typing import Final

from sqlalchemy import Connection, text

from metering.invariants import Fault, Page, in_page, invariant

_ENDED: Final = "sum(posted_count + duplicate_count + refused_count)"
# How many events ended in the batches of a page, by shard.
_ENDED_IN_PAGE: Final = text(f"""
    SELECT shard, epoch, {_ENDED}::bigint AS settled FROM usage_batches
    WHERE {in_page("batch_id")} GROUP BY shard, epoch
""")
# Each shard's cursor, and the events that ended in batches after the last page.
_SHARDS: Final = text(f"""
    SELECT c.shard, c.epoch, c.settled_count, c.lost_count,
        coalesce(b.settled, 0)::bigint AS settled
    FROM drain_cursors c LEFT JOIN (
        SELECT shard, epoch, {_ENDED} AS settled FROM usage_batches
        WHERE batch_id > :after GROUP BY shard, epoch) b USING (shard, epoch)
    ORDER BY c.shard, c.epoch
""")


def count_page(conn: Connection, ended: Mapping[str, int], page: Page) -> dict[str, int]:
    """Return the events that ended by `shard epoch`, with those of the batches of a page."""
    counted = dict(ended)
    for row in conn.execute(_ENDED_IN_PAGE, page):
        key = f"{row.shard} {row.epoch}"
        counted[key] = counted.get(key, 0) + row.settled
    return counted


def cursor_faults(conn: Connection, ended: Mapping[str, int], after: str | int) -> Iterator[Fault]:
    """Compare each shard's cursor with its batches: those counted, and those after `after`."""
    for row in conn.execute(_SHARDS, {"after": after}):
        settled = ended.get(f"{row.shard} {row.epoch}", 0) + row.settled
        if row.settled_count != settled:
            detail = f"shard {row.shard}, epoch {row.epoch}: the cursor settled"
            detail += f" {row.settled_count} events, its batches {settled}"
            yield Fault(invariant="every accepted event ended once", detail=detail)
        if row.lost_count:
            yield loss_of(row.shard, row.epoch, row.lost_count)


def loss_of(shard: int, epoch: str, events: int) -> Fault:
    """Return the fault of a shard whose accepted events left Redis before they were debited."""
    detail = f"shard {shard}: {events} accepted events are gone from Redis (epoch {epoch})"
    return Fault(invariant="no accepted event was lost", detail=detail)


INVARIANTS: Final = (
    # For events that are still kept.
    invariant(
        "a usage entry costs what its events cost",
        None,
        text("""
            SELECT w.wallet_id, e.entry_id, u.batch_id, e.cost AS entry_cost,
                u.cost AS events_cost
            FROM (
                SELECT batch_id, customer_id, currency, sum(cost_minor) AS cost,
                    count(*) AS events
                FROM usage_events WHERE currency IS NOT NULL
                GROUP BY batch_id, customer_id, currency) u
            JOIN wallets w ON w.customer_id = u.customer_id AND w.currency = u.currency
            LEFT JOIN (
                SELECT batch_id, wallet_id, max(entry_id) AS entry_id, sum(exact_cost) AS cost,
                    sum(event_count) AS events
                FROM ledger_entries WHERE batch_id IS NOT NULL
                GROUP BY batch_id, wallet_id) e
                ON e.batch_id = u.batch_id AND e.wallet_id = w.wallet_id
            WHERE e.cost IS DISTINCT FROM u.cost OR e.events IS DISTINCT FROM u.events
        """),
        deep=True,
    ),
    # Keys are kept for ever.
    invariant(
        "each posted event holds a key",
        None,
        text("""
            SELECT b.batch_id, b.posted_count, coalesce(k.keys, 0) AS keys
            FROM usage_batches b LEFT JOIN (
                SELECT batch_id, count(*) AS keys FROM usage_event_keys GROUP BY batch_id) k
                USING (batch_id)
            WHERE b.posted_count <> coalesce(k.keys, 0)
        """),
        deep=True,
    ),
)
