"""All SQL of the invariants, a sentence each: every row is a fault.

The keys of a table are walked in pages. A check of a page sees keys above `:after` up to `:upto`,
and says so in each of its parts, because Postgres does not carry a range over a join.
"""

from typing import Final

from sqlalchemy import text

from metering import locks
from metering.ledger.lots.statements import LOT_NOW
from metering.ledger.statements import ENTRY_COLUMNS


def _in(column: str) -> str:
    return f"{column} > :after AND {column} <= :upto"


# --- pages --------------------------------------------------------------------------------------

_BOUND: Final = (
    "SELECT max({key}) FROM (SELECT {key} FROM {table} WHERE {key} > :after"
    " ORDER BY {key} LIMIT :page) page"
)
# Where the next page of each table ends; NULL if nothing is left.
NEXT_WALLETS: Final = text(_BOUND.format(key="wallet_id", table="wallets"))
NEXT_PURCHASES: Final = text(_BOUND.format(key="purchase_id", table="purchases"))
NEXT_CHECKOUTS: Final = text(_BOUND.format(key="checkout_id", table="checkouts"))
# A batch gets its number before its transaction begins. Whatever has a smaller number than one of
# five minutes ago is committed or dead, so such a page is never added to.
NEXT_BATCHES: Final = text(
    "SELECT max(batch_id) FROM (SELECT batch_id, created_at FROM usage_batches"
    " WHERE batch_id > :after ORDER BY batch_id LIMIT :page) page"
    " WHERE created_at < clock_timestamp() - interval '5 minutes'"
)

# --- wallets ------------------------------------------------------------------------------------

# Wallets whose balance, remainder, version or digest is not that of their last entry.
WALLETS_OFF_THEIR_ENTRIES: Final = text(
    "SELECT w.wallet_id, w.balance_minor, w.version, e.after_minor, e.version AS entry_version"
    " FROM wallets w LEFT JOIN LATERAL (SELECT after_minor, version, remainder_after, chain"
    " FROM ledger_entries e WHERE e.wallet_id = w.wallet_id ORDER BY version DESC LIMIT 1) e"
    f" ON true WHERE {_in('w.wallet_id')} AND (w.balance_minor <> coalesce(e.after_minor, 0)"
    " OR w.version <> coalesce(e.version, 0) OR w.remainder <> coalesce(e.remainder_after, 0)"
    " OR w.chain IS DISTINCT FROM e.chain)"
)
# Wallets whose balance is not what is left in their lots less their debt.
WALLETS_OFF_THEIR_LOTS: Final = text(
    "SELECT w.wallet_id, w.balance_minor, coalesce(l.held, 0) AS in_lots,"
    " w.debited_minor - w.covered_minor AS debt, w.frozen_minor, coalesce(l.frozen, 0) AS in_frozen"
    " FROM wallets w LEFT JOIN (SELECT wallet_id, sum(left_minor) AS held,"
    " sum(left_minor) FILTER (WHERE frozen_at IS NOT NULL) AS frozen"
    f" FROM ({LOT_NOW} WHERE {_in('l.wallet_id')}) now GROUP BY wallet_id) l USING (wallet_id)"
    f" WHERE {_in('w.wallet_id')}"
    " AND (w.balance_minor <> coalesce(l.held, 0) - (w.debited_minor - w.covered_minor)"
    " OR w.frozen_minor <> coalesce(l.frozen, 0))"
)
# Remainders out of range: the table's own check, for a database whose checks were dropped.
REMAINDERS_OUT_OF_RANGE: Final = text(
    f"SELECT wallet_id, remainder FROM wallets WHERE {_in('wallet_id')}"
    " AND (remainder < 0 OR remainder >= 1)"
)
# Alert numbers that are missing between the first and the last of a wallet, and were not pruned.
ALERTS_WITH_GAPS: Final = text(
    "SELECT w.wallet_id, w.alert_sequence, coalesce(e.alerts, 0) AS alerts,"
    " coalesce(p.alert_count, 0) AS pruned FROM wallets w"
    " LEFT JOIN (SELECT wallet_id, count(*) AS alerts FROM webhook_events"
    f" WHERE {_in('wallet_id')} GROUP BY wallet_id) e USING (wallet_id)"
    " LEFT JOIN pruned_alerts p USING (wallet_id)"
    f" WHERE {_in('w.wallet_id')}"
    " AND w.alert_sequence <> coalesce(e.alerts, 0) + coalesce(p.alert_count, 0)"
)
# Wallets whose balance is not the sum of their entries, or whose version is not their number.
WALLETS_OFF_THEIR_SUM: Final = text(
    "SELECT w.wallet_id, w.balance_minor, coalesce(s.total, 0) AS total, w.version,"
    " coalesce(s.entries, 0) AS entries FROM wallets w LEFT JOIN (SELECT wallet_id,"
    " sum(CASE WHEN is_credit THEN amount_minor ELSE -amount_minor END) AS total,"
    f" count(*) AS entries FROM ledger_entries WHERE {_in('wallet_id')} GROUP BY wallet_id) s"
    f" USING (wallet_id) WHERE {_in('w.wallet_id')}"
    " AND (w.balance_minor <> coalesce(s.total, 0) OR w.version <> coalesce(s.entries, 0))"
)
# Every entry in the order of the chain, for a walk.
ENTRIES_OF_PAGE: Final = text(
    f"SELECT {ENTRY_COLUMNS} FROM ledger_entries WHERE {_in('wallet_id')}"
    " ORDER BY wallet_id, version"
)
# Lots whose amount is not what is left, what they paid for, and what was moved out of them.
LOTS_OFF_THEIR_USE: Final = text(
    "SELECT wallet_id, lot_id, now.amount_minor, now.left_minor,"
    " coalesce(c.paid, 0) AS paid, coalesce(m.moved, 0) AS moved"
    f" FROM ({LOT_NOW} WHERE {_in('l.wallet_id')}) now"
    " LEFT JOIN (SELECT wallet_id, lot_id, sum(to_minor - from_minor) AS paid FROM lot_coverage"
    f" WHERE {_in('wallet_id')} GROUP BY wallet_id, lot_id) c USING (wallet_id, lot_id)"
    " LEFT JOIN (SELECT wallet_id, lot_id, sum(moved_minor) AS moved FROM lot_moves"
    f" WHERE {_in('wallet_id')} GROUP BY wallet_id, lot_id) m USING (wallet_id, lot_id)"
    " WHERE now.amount_minor <> now.left_minor + coalesce(c.paid, 0) - coalesce(m.moved, 0)"
)
# Wallets whose line of debits is not paid for once and without gaps, from its start to what is
# covered.
COVERAGE_WITH_GAPS: Final = text(
    "SELECT w.wallet_id, w.covered_minor, c.from_minor, c.before_minor, c.last_minor FROM wallets w"
    " LEFT JOIN (SELECT wallet_id, from_minor, to_minor,"
    " lag(to_minor, 1, 0::bigint) OVER line AS before_minor,"
    " max(to_minor) OVER (PARTITION BY wallet_id) AS last_minor FROM lot_coverage"
    f" WHERE {_in('wallet_id')}"
    " WINDOW line AS (PARTITION BY wallet_id ORDER BY from_minor)) c USING (wallet_id)"
    f" WHERE {_in('w.wallet_id')}"
    " AND (c.from_minor <> c.before_minor OR w.covered_minor <> coalesce(c.last_minor, 0))"
)
# Debits that do not begin where the one before ended, or wallets that do not end with their last.
DEBITS_OFF_THEIR_LINE: Final = text(
    "SELECT wallet_id, entry_id, from_minor, to_minor, before_minor, next_version, debited_minor"
    " FROM (SELECT wallet_id, entry_id, from_minor, to_minor, debited_minor,"
    " lag(to_minor) OVER line AS before_minor, lead(p.version) OVER line AS next_version"
    f" FROM debit_places p JOIN wallets w USING (wallet_id) WHERE {_in('p.wallet_id')}"
    " WINDOW line AS (PARTITION BY wallet_id ORDER BY p.version)) lined"
    " WHERE from_minor <> before_minor OR (next_version IS NULL AND to_minor <> debited_minor)"
)
# Debits whose lots did not pay all of them, though all of them is paid.
ENTRIES_OFF_THEIR_ALLOCATIONS: Final = text(
    "SELECT p.wallet_id, p.entry_id, e.amount_minor, coalesce(a.paid, 0) AS paid"
    " FROM debit_places p JOIN ledger_entries e USING (entry_id)"
    " JOIN wallets w ON w.wallet_id = p.wallet_id LEFT JOIN (SELECT entry_id,"
    f" sum(amount_minor) AS paid FROM lot_allocations WHERE {_in('wallet_id')}"
    f" GROUP BY entry_id) a USING (entry_id) WHERE {_in('p.wallet_id')}"
    " AND p.to_minor <= w.covered_minor AND e.amount_minor <> coalesce(a.paid, 0)"
)

# --- purchases and checkouts --------------------------------------------------------------------

# Settled purchases whose entry does not credit what was bought, or of which other entries called
# back more or less than they are marked with.
PURCHASES_OFF_THEIR_ENTRY: Final = text(
    "SELECT p.purchase_id, p.entry_id FROM purchases p LEFT JOIN ledger_entries e"
    " ON e.entry_id = p.entry_id LEFT JOIN LATERAL (SELECT coalesce(sum(CASE WHEN is_credit"
    " THEN -amount_minor ELSE amount_minor END), 0) AS taken FROM ledger_entries"
    " WHERE kind = 'reversal' AND reference = p.purchase_id) r ON true"
    f" WHERE {_in('p.purchase_id')} AND p.entry_id IS NOT NULL AND (e.entry_id IS NULL"
    " OR e.amount_minor <> p.credit_minor OR NOT e.is_credit OR e.customer_id <> p.customer_id"
    " OR r.taken <> p.refunded_minor + p.lost_minor - p.shortfall_minor)"
)
# Checkouts whose debit does not reserve their credit part, that failed without giving all of it
# back, or that are complete though nobody has paid the rest.
CHECKOUTS_OFF_THEIR_ENTRIES: Final = text(
    "SELECT k.checkout_id, k.status, k.credit_minor, e.entry_id, e.wallet_id, r.released"
    " FROM checkouts k LEFT JOIN ledger_entries e ON e.entry_id = k.debit_entry_id"
    " CROSS JOIN LATERAL (SELECT coalesce(sum(amount_minor), 0) AS released FROM ledger_entries"
    " WHERE kind = 'refund' AND reference = k.debit_entry_id) r"
    f" WHERE {_in('k.checkout_id')} AND ("
    "(k.credit_minor > 0 AND (e.entry_id IS NULL OR e.is_credit OR e.kind <> 'checkout'"
    " OR e.amount_minor <> k.credit_minor OR e.customer_id <> k.customer_id"
    " OR e.reference IS DISTINCT FROM k.checkout_id))"
    " OR r.released > k.credit_minor"
    " OR (k.status = 'failed' AND r.released <> k.credit_minor)"
    " OR (k.status = 'completed' AND k.payment_minor > 0 AND NOT EXISTS (SELECT FROM payments p"
    " WHERE p.checkout_id = k.checkout_id AND p.status = 'succeeded'"
    " AND p.currency = k.currency AND p.amount_minor >= k.payment_minor)))"
)

# --- batches ------------------------------------------------------------------------------------

_SETTLED: Final = "sum(posted_count + duplicate_count + refused_count)"
# How many events the batches of a page settled, by shard.
SETTLED_OF_PAGE: Final = text(
    f"SELECT shard, epoch, {_SETTLED}::bigint AS settled FROM usage_batches"
    f" WHERE {_in('batch_id')} GROUP BY shard, epoch"
)
# What each shard's cursor says, and what the batches after the last page add.
SHARDS: Final = text(
    "SELECT c.shard, c.epoch, c.settled_count, c.lost_count, coalesce(b.settled, 0)::bigint AS"
    f" settled FROM drain_cursors c LEFT JOIN (SELECT shard, epoch, {_SETTLED} AS settled"
    " FROM usage_batches WHERE batch_id > :after GROUP BY shard, epoch) b USING (shard, epoch)"
    " ORDER BY c.shard, c.epoch"
)
# Batches whose posted events are not those that hold a key (keys are for ever).
BATCHES_OFF_THEIR_KEYS: Final = text(
    "SELECT b.batch_id, b.posted_count, coalesce(k.keys, 0) AS keys FROM usage_batches b"
    " LEFT JOIN (SELECT batch_id, count(*) AS keys FROM usage_event_keys GROUP BY batch_id) k"
    " USING (batch_id) WHERE b.posted_count <> coalesce(k.keys, 0)"
)
# Usage entries whose cost is not the sum of their events, where the events are still kept.
ENTRIES_OFF_THEIR_EVENTS: Final = text(
    "SELECT w.wallet_id, e.entry_id, u.batch_id, e.cost AS entry_cost, u.cost AS events_cost"
    " FROM (SELECT batch_id, customer_id, currency, sum(cost_minor) AS cost, count(*) AS events"
    " FROM usage_events WHERE currency IS NOT NULL GROUP BY batch_id, customer_id, currency) u"
    " JOIN wallets w ON w.customer_id = u.customer_id AND w.currency = u.currency"
    " LEFT JOIN (SELECT batch_id, wallet_id, max(entry_id) AS entry_id, sum(exact_cost) AS cost,"
    " sum(event_count) AS events FROM ledger_entries WHERE batch_id IS NOT NULL"
    " GROUP BY batch_id, wallet_id) e ON e.batch_id = u.batch_id AND e.wallet_id = w.wallet_id"
    " WHERE e.cost IS DISTINCT FROM u.cost OR e.events IS DISTINCT FROM u.events"
)

# --- the scheduled walk -------------------------------------------------------------------------

# One slice of the walk at a time.
TRY_WALK: Final = text(f"SELECT pg_try_advisory_xact_lock({locks.VERIFY}, 0)")
# The walk under way, if one is, and the last complete one. Another is due an hour after the last
# began, and when that was before `:since`.
WALK: Final = text(
    "SELECT place, fault_count, completed_at, completed_fault_count, started_at IS NULL"
    " OR started_at < greatest(to_timestamp(:since), now() - interval '1 hour') AS is_due"
    " FROM verify_walk"
)
# The last complete walk and the faults known, as `continue_walk` counts them. Where none was ever
# complete, the wait counts from the first business on.
VERIFIED: Final = text(
    "SELECT completed_at IS NOT NULL AS is_complete, greatest(fault_count, completed_fault_count)"
    " AS faults, extract(epoch FROM clock_timestamp() - coalesce(completed_at,"
    " (SELECT min(created_at) FROM businesses), now())) AS age_s FROM verify_walk"
)
# Let a walk begin at once: what counts as a fault has changed.
MAKE_WALK_DUE: Final = text("UPDATE verify_walk SET started_at = NULL")
# Begin a walk.
BEGIN_WALK: Final = text("UPDATE verify_walk SET started_at = now(), fault_count = 0")
# Note how far the walk has come.
LEAVE_WALK: Final = text(
    "UPDATE verify_walk SET place = CAST(:place AS json), fault_count = fault_count + :found"
)
# The walk is complete.
END_WALK: Final = text(
    "UPDATE verify_walk SET place = NULL, completed_at = now(),"
    " completed_fault_count = fault_count + :found"
)

# --- accepted faults ----------------------------------------------------------------------------

# Faults that a person has accepted, oldest first.
ACCEPTED: Final = text(
    "SELECT fault_id, invariant, detail, reason, accepted_at FROM accepted_faults"
    " ORDER BY accepted_at, fault_id"
)
# Accept a fault; once is enough.
ACCEPT: Final = text(
    "INSERT INTO accepted_faults (fault_id, invariant, detail, reason)"
    " VALUES (:fault_id, :invariant, :detail, :reason) ON CONFLICT (fault_id) DO NOTHING"
)
