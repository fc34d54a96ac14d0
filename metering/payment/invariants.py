"""The invariant of checkouts: the ledger agrees with each of them."""

from typing import Final

from sqlalchemy import text

from metering.invariants import in_page, invariant

INVARIANTS: Final = (
    # The debit of a checkout reserves its credit part, a failed one gave all of it back, and a
    # completed one is paid.
    invariant(
        "a checkout holds its credit or gave it back",
        "checkouts",
        text(f"""
            SELECT k.checkout_id, k.status, k.credit_minor, e.entry_id, e.wallet_id, r.released
            FROM checkouts k LEFT JOIN ledger_entries e ON e.entry_id = k.debit_entry_id
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(amount_minor), 0) AS released FROM ledger_entries
                WHERE kind = 'refund' AND reference = k.debit_entry_id) r
            WHERE {in_page("k.checkout_id")} AND (
                (k.credit_minor > 0 AND (e.entry_id IS NULL OR e.is_credit OR e.kind <> 'checkout'
                    OR e.amount_minor <> k.credit_minor OR e.customer_id <> k.customer_id
                    OR e.reference IS DISTINCT FROM k.checkout_id))
                OR r.released > k.credit_minor
                OR (k.status = 'failed' AND r.released <> k.credit_minor)
                OR (k.status = 'completed' AND k.payment_minor > 0 AND NOT EXISTS (
                    SELECT FROM payments p
                    WHERE p.checkout_id = k.checkout_id AND p.status = 'succeeded'
                        AND p.currency = k.currency AND p.amount_minor >= k.payment_minor)))
        """),
    ),
)
