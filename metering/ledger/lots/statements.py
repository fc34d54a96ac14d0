"""All SQL of lots, a sentence each."""

from typing import Final

from sqlalchemy import text

from metering.ledger.entry import Lot

# The columns of `Lot`, in the order of its fields.
_LOT: Final = ", ".join(Lot._fields)
_NEW_LOT: Final = ", ".join(f"l.{field}" for field in Lot._fields)

# The lots of some wallets that are not empty; the wallets are locked.
LOTS_LEFT: Final = text(f"""
    SELECT {_LOT} FROM credit_lots
    WHERE wallet_id = ANY(:wallet_ids) AND remaining_minor > 0
""")
# Some of their lots, empty ones too.
LOTS: Final = text(f"""
    SELECT {_LOT} FROM credit_lots
    WHERE wallet_id = ANY(:wallet_ids) AND lot_id = ANY(:lot_ids)
""")
# Write new lots.
INSERT_LOTS: Final = text(f"""
    INSERT INTO credit_lots ({_LOT}, entry_id, business_id)
    SELECT {_NEW_LOT}, l.entry_id, w.business_id
    FROM unnest(CAST(:lot_id AS text[]), CAST(:wallet_id AS text[]), CAST(:source AS text[]),
        CAST(:priority AS smallint[]), CAST(:amount_minor AS bigint[]),
        CAST(:remaining_minor AS bigint[]), CAST(:cost_basis_minor AS bigint[]),
        CAST(:expires_at AS timestamptz[]), CAST(:frozen_at AS timestamptz[]),
        CAST(:created_at AS timestamptz[]), CAST(:entry_id AS text[])) AS l ({_LOT}, entry_id)
    JOIN wallets w ON w.wallet_id = l.wallet_id
""")
# Write what is left of lots.
LEAVE_IN_LOTS: Final = text("""
    UPDATE credit_lots l SET remaining_minor = m.remaining_minor
    FROM unnest(CAST(:wallet_id AS text[]), CAST(:lot_id AS text[]),
        CAST(:remaining_minor AS bigint[])) AS m (wallet_id, lot_id, remaining_minor)
    WHERE l.wallet_id = m.wallet_id AND l.lot_id = m.lot_id
""")
# Write stretches of debits that lots have paid and that are complete.
INSERT_STRETCHES: Final = text("""
    INSERT INTO lot_stretches (wallet_id, from_minor, to_minor, lot_id)
    SELECT * FROM unnest(CAST(:wallet_id AS text[]), CAST(:from_minor AS bigint[]),
        CAST(:to_minor AS bigint[]), CAST(:lot_id AS text[]))
""")
# Write what entries took from the lots that they name, or gave back to them.
INSERT_LOT_MOVES: Final = text("""
    INSERT INTO lot_moves (entry_id, wallet_id, lot_id, moved_minor)
    SELECT * FROM unnest(CAST(:entry_id AS text[]), CAST(:wallet_id AS text[]),
        CAST(:lot_id AS text[]), CAST(:moved_minor AS bigint[]))
""")
# Freeze a lot, or free it.
FREEZE_LOT: Final = text("""
    UPDATE credit_lots SET frozen_at = CASE WHEN :is_frozen THEN clock_timestamp() END
    WHERE wallet_id = :wallet_id AND lot_id = :lot_id
        AND (frozen_at IS NOT NULL) <> :is_frozen
""")

# --- giving back --------------------------------------------------------------------------------

# Entries of a wallet in their order.
IN_ORDER: Final = text("""
    SELECT entry_id, is_credit, amount_minor FROM ledger_entries
    WHERE entry_id = ANY(:entry_ids) ORDER BY version
""")
# The parts of debits that lots have paid, in the order of consumption: first the lots that a debit
# names, then the current lots.
BURNED: Final = text("""
    SELECT a.entry_id, a.lot_id, a.amount_minor, l.expires_at FROM lot_allocations a
    JOIN credit_lots l USING (wallet_id, lot_id)
    WHERE a.entry_id = ANY(:debits) ORDER BY a.at_minor NULLS FIRST, a.lot_id
""")

# --- lists --------------------------------------------------------------------------------------

LOT_NOW: Final = """SELECT l.lot_id, l.wallet_id, l.business_id, w.customer_id, w.currency,
    l.entry_id, l.source, l.priority, l.amount_minor,
    CASE WHEN l.lot_id = w.lot_id THEN w.lot_left_minor
        ELSE l.remaining_minor END AS left_minor, l.cost_basis_minor, l.expires_at, l.frozen_at,
    l.created_at FROM credit_lots l JOIN wallets w USING (wallet_id)"""

# A page of the lots of a customer's wallets, newest first, before a place in that order.
LOT_PAGE: Final = text(f"""
    {LOT_NOW} WHERE w.business_id = :business_id AND w.customer_id = :customer_id
        AND (CAST(:currency AS text) IS NULL OR w.currency = :currency)
        AND (NOT :only_left OR (l.remaining_minor > 0
            AND (l.lot_id IS DISTINCT FROM w.lot_id OR w.lot_left_minor > 0)))
        AND (CAST(:after AS text) IS NULL OR l.lot_id < :after)
    ORDER BY l.lot_id DESC LIMIT :page OFFSET :offset
""")
# The lots that a debit consumed, or that a credit filled or made, in that order.
ALLOCATIONS: Final = text("""
    SELECT a.lot_id, l.source, a.amount_minor FROM (
        SELECT lot_id, amount_minor, at_minor FROM lot_allocations WHERE entry_id = :entry_id
        UNION ALL
        SELECT lot_id, amount_minor, NULL FROM credit_lots
        WHERE wallet_id = :wallet_id AND entry_id = :entry_id) a
    JOIN credit_lots l ON l.wallet_id = :wallet_id AND l.lot_id = a.lot_id
    ORDER BY a.at_minor NULLS FIRST, a.lot_id
""")
