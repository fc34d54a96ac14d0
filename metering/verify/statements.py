"""All SQL of the walk over the invariants, a sentence each."""

from typing import Final

from sqlalchemy import TextClause, text

from metering import locks

# --- pages --------------------------------------------------------------------------------------


def _next(key: str, table: str) -> TextClause:
    return text(f"""
        SELECT max({key}) FROM (
            SELECT {key} FROM {table} WHERE {key} > :after ORDER BY {key} LIMIT :page) page
    """)


# Where the next page of each table ends; NULL at the end of the table.
NEXT_WALLETS: Final = _next("wallet_id", "wallets")
NEXT_PURCHASES: Final = _next("purchase_id", "purchases")
NEXT_CHECKOUTS: Final = _next("checkout_id", "checkouts")
# A batch gets its number before its transaction begins. All batches before one that is five
# minutes old are committed or dead, so no batch is added to such a page.
NEXT_BATCHES: Final = text("""
    SELECT max(batch_id) FROM (
        SELECT batch_id, created_at FROM usage_batches
        WHERE batch_id > :after ORDER BY batch_id LIMIT :page) page
    WHERE created_at < clock_timestamp() - interval '5 minutes'
""")

# --- the scheduled walk -------------------------------------------------------------------------

# One slice of the walk at a time.
TRY_WALK: Final = text(f"SELECT pg_try_advisory_xact_lock({locks.VERIFY}, 0)")
# The current walk, if there is one, and the last complete one. A walk is due an hour after the
# last one began, and if that was before `:since`.
WALK: Final = text("""
    SELECT place, fault_count, completed_at, completed_fault_count,
        started_at IS NULL
            OR started_at < greatest(to_timestamp(:since), now() - interval '1 hour') AS is_due
    FROM verify_walk
""")
# The age of the last complete walk, and the faults that count now. If no walk was ever complete,
# the age is that of the first business.
VERIFIED: Final = text("""
    SELECT completed_at IS NOT NULL AS is_complete,
        greatest(fault_count, completed_fault_count) AS faults,
        extract(epoch FROM clock_timestamp() - coalesce(completed_at,
            (SELECT min(created_at) FROM businesses), now())) AS age_s
    FROM verify_walk
""")
# Make a walk due at once: another set of faults counts now.
MAKE_WALK_DUE: Final = text("UPDATE verify_walk SET started_at = NULL")
BEGIN_WALK: Final = text("UPDATE verify_walk SET started_at = now(), fault_count = 0")
# Store how far the walk has come.
LEAVE_WALK: Final = text("""
    UPDATE verify_walk SET place = CAST(:place AS json), fault_count = fault_count + :found
""")
END_WALK: Final = text("""
    UPDATE verify_walk SET place = NULL, completed_at = now(),
        completed_fault_count = fault_count + :found
""")

# --- accepted faults ----------------------------------------------------------------------------

# All accepted faults, oldest first.
ACCEPTED: Final = text("""
    SELECT fault_id, invariant, detail, reason, accepted_at FROM accepted_faults
    ORDER BY accepted_at, fault_id
""")
# Accept a fault; a second time changes nothing.
ACCEPT: Final = text("""
    INSERT INTO accepted_faults (fault_id, invariant, detail, reason)
    VALUES (:fault_id, :invariant, :detail, :reason) ON CONFLICT (fault_id) DO NOTHING
""")
