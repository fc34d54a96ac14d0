"""The invariants of wallets, entries and lots."""

from collections.abc import Iterator
from functools import partial
from typing import Final

from sqlalchemy import Connection, text

from metering import db
from metering.invariants import Fault, Invariant, Page, in_page, invariant
from metering.ledger.entry import Entry, chain_digest
from metering.ledger.history import stored_entry
from metering.ledger.lots.statements import LOT_NOW
from metering.ledger.statements import ENTRY_COLUMNS

WALK_ROWS: Final = 10_000

# All entries of some wallets, in the order of the chain.
_ENTRIES: Final = text(f"""
    SELECT {ENTRY_COLUMNS} FROM ledger_entries WHERE {in_page("wallet_id")}
    ORDER BY wallet_id, version
""")


def walk_chain(conn: Connection, page: Page) -> Iterator[Fault]:
    """Check that each entry of each wallet follows from the entry before it."""
    previous: Entry | None = None
    for row in conn.execute(_ENTRIES, page, execution_options={"yield_per": WALK_ROWS}):
        entry = db.row(stored_entry, row)
        if previous is not None and previous.wallet_id != entry.wallet_id:
            previous = None
        yield from _link_faults(previous, entry)
        previous = entry


def _link_faults(previous: Entry | None, entry: Entry) -> Iterator[Fault]:
    fault = partial(Fault, wallet_id=entry.wallet_id, entry_id=entry.entry_id)
    expected = 1 if previous is None else previous.version + 1
    if entry.version != expected:
        yield fault(
            invariant="entries are without gaps",
            detail=f"version {expected} is missing before version {entry.version}",
        )
        return
    before = (0, 0) if previous is None else (previous.after_minor, previous.remainder_after)
    if (entry.before_minor, entry.remainder_before) != before:
        yield fault(
            invariant="each entry continues the one before it",
            detail=f"version {entry.version} begins at {entry.before_minor}, not at {before[0]}",
        )
    sign = 1 if entry.is_credit else -1
    if entry.after_minor != entry.before_minor + sign * entry.amount_minor:
        yield fault(
            invariant="after = before ± amount",
            detail=f"version {entry.version} ends at {entry.after_minor}",
        )
    if entry.chain != chain_digest(b"" if previous is None else previous.chain, entry):
        yield fault(
            invariant="entries are as they were written",
            detail=f"version {entry.version} does not match its digest: it was edited",
        )


INVARIANTS: Final = (
    # Balance, remainder, version and digest of a wallet are those of its last entry.
    invariant(
        "a wallet stands where its last entry left it",
        "wallets",
        text(f"""
            SELECT w.wallet_id, w.balance_minor, w.version, e.after_minor,
                e.version AS entry_version
            FROM wallets w LEFT JOIN LATERAL (
                SELECT after_minor, version, remainder_after, chain FROM ledger_entries e
                WHERE e.wallet_id = w.wallet_id ORDER BY version DESC LIMIT 1) e ON true
            WHERE {in_page("w.wallet_id")}
                AND (w.balance_minor <> coalesce(e.after_minor, 0)
                    OR w.version <> coalesce(e.version, 0)
                    OR w.remainder <> coalesce(e.remainder_after, 0)
                    OR w.chain IS DISTINCT FROM e.chain)
        """),
    ),
    invariant(
        "balance = what is left in lots - debt",
        "wallets",
        text(f"""
            SELECT w.wallet_id, w.balance_minor, coalesce(l.held, 0) AS in_lots,
                w.debited_minor - w.covered_minor AS debt, w.frozen_minor,
                coalesce(l.frozen, 0) AS in_frozen
            FROM wallets w LEFT JOIN (
                SELECT wallet_id, sum(left_minor) AS held,
                    sum(left_minor) FILTER (WHERE frozen_at IS NOT NULL) AS frozen
                FROM ({LOT_NOW} WHERE {in_page("l.wallet_id")}) now
                GROUP BY wallet_id) l USING (wallet_id)
            WHERE {in_page("w.wallet_id")}
                AND (w.balance_minor <> coalesce(l.held, 0) - (w.debited_minor - w.covered_minor)
                    OR w.frozen_minor <> coalesce(l.frozen, 0))
        """),
    ),
    # The table has this check too; a database may have lost its checks.
    invariant(
        "0 <= remainder < 1",
        "wallets",
        text(f"""
            SELECT wallet_id, remainder FROM wallets
            WHERE {in_page("wallet_id")} AND (remainder < 0 OR remainder >= 1)
        """),
    ),
    invariant(
        "balance = sum of entries, version = their number",
        "wallets",
        text(f"""
            SELECT w.wallet_id, w.balance_minor, coalesce(s.total, 0) AS total, w.version,
                coalesce(s.entries, 0) AS entries
            FROM wallets w LEFT JOIN (
                SELECT wallet_id, count(*) AS entries,
                    sum(CASE WHEN is_credit THEN amount_minor ELSE -amount_minor END) AS total
                FROM ledger_entries WHERE {in_page("wallet_id")} GROUP BY wallet_id) s
                USING (wallet_id)
            WHERE {in_page("w.wallet_id")}
                AND (w.balance_minor <> coalesce(s.total, 0)
                    OR w.version <> coalesce(s.entries, 0))
        """),
        deep=True,
    ),
    invariant(
        "a lot = what is left + what it paid + what was taken",
        "wallets",
        text(f"""
            SELECT wallet_id, lot_id, now.amount_minor, now.left_minor,
                coalesce(c.paid, 0) AS paid, coalesce(m.moved, 0) AS moved
            FROM ({LOT_NOW} WHERE {in_page("l.wallet_id")}) now
            LEFT JOIN (
                SELECT wallet_id, lot_id, sum(to_minor - from_minor) AS paid FROM lot_coverage
                WHERE {in_page("wallet_id")} GROUP BY wallet_id, lot_id) c USING (wallet_id, lot_id)
            LEFT JOIN (
                SELECT wallet_id, lot_id, sum(moved_minor) AS moved FROM lot_moves
                WHERE {in_page("wallet_id")} GROUP BY wallet_id, lot_id) m USING (wallet_id, lot_id)
            WHERE now.amount_minor <>
                now.left_minor + coalesce(c.paid, 0) - coalesce(m.moved, 0)
        """),
        deep=True,
    ),
    # From the start of a wallet's line of debits to the place up to which it is covered.
    invariant(
        "debits are paid for once, without gaps",
        "wallets",
        text(f"""
            SELECT w.wallet_id, w.covered_minor, c.from_minor, c.before_minor, c.last_minor
            FROM wallets w LEFT JOIN (
                SELECT wallet_id, from_minor, to_minor,
                    lag(to_minor, 1, 0::bigint) OVER line AS before_minor,
                    max(to_minor) OVER (PARTITION BY wallet_id) AS last_minor
                FROM lot_coverage WHERE {in_page("wallet_id")}
                WINDOW line AS (PARTITION BY wallet_id ORDER BY from_minor)) c USING (wallet_id)
            WHERE {in_page("w.wallet_id")}
                AND (c.from_minor <> c.before_minor
                    OR w.covered_minor <> coalesce(c.last_minor, 0))
        """),
        deep=True,
    ),
    # Each debit begins where the debit before it ended, and a wallet ends with its last debit.
    invariant(
        "debits follow each other",
        "wallets",
        text(f"""
            SELECT wallet_id, entry_id, from_minor, to_minor, before_minor, next_version,
                debited_minor
            FROM (
                SELECT wallet_id, entry_id, from_minor, to_minor, debited_minor,
                    lag(to_minor) OVER line AS before_minor,
                    lead(p.version) OVER line AS next_version
                FROM debit_places p JOIN wallets w USING (wallet_id)
                WHERE {in_page("p.wallet_id")}
                WINDOW line AS (PARTITION BY wallet_id ORDER BY p.version)) lined
            WHERE from_minor <> before_minor
                OR (next_version IS NULL AND to_minor <> debited_minor)
        """),
        deep=True,
    ),
    # Of debits that are covered to their end.
    invariant(
        "the lots of a debit sum to it",
        "wallets",
        text(f"""
            SELECT p.wallet_id, p.entry_id, e.amount_minor, coalesce(a.paid, 0) AS paid
            FROM debit_places p JOIN ledger_entries e USING (entry_id)
            JOIN wallets w ON w.wallet_id = p.wallet_id
            LEFT JOIN (
                SELECT entry_id, sum(amount_minor) AS paid FROM lot_allocations
                WHERE {in_page("wallet_id")} GROUP BY entry_id) a USING (entry_id)
            WHERE {in_page("p.wallet_id")}
                AND p.to_minor <= w.covered_minor AND e.amount_minor <> coalesce(a.paid, 0)
        """),
        deep=True,
    ),
    Invariant("wallets", walk_chain, deep=True),
)
