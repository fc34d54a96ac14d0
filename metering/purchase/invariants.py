"""The invariant of purchases: the ledger agrees with each of them."""

from typing import Final

from sqlalchemy import text

from metering.invariants import in_page, invariant

INVARIANTS: Final = (
    # The entry of a settled purchase credits what was bought, and its reversals took back as much
    # as the purchase says.
    invariant(
        "a credited purchase has its entry",
        "purchases",
        text(f"""
            SELECT p.purchase_id, p.entry_id
            FROM purchases p LEFT JOIN ledger_entries e ON e.entry_id = p.entry_id
            LEFT JOIN LATERAL (
                SELECT coalesce(sum(CASE WHEN is_credit THEN -amount_minor ELSE amount_minor END),
                    0) AS taken
                FROM ledger_entries WHERE kind = 'reversal' AND reference = p.purchase_id) r ON true
            WHERE {in_page("p.purchase_id")} AND p.entry_id IS NOT NULL
                AND (e.entry_id IS NULL OR e.amount_minor <> p.credit_minor OR NOT e.is_credit
                    OR e.customer_id <> p.customer_id
                    OR r.taken <> p.refunded_minor + p.lost_minor - p.shortfall_minor)
        """),
    ),
)
