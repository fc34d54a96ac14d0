"""All SQL of the demo, a sentence each: it only reads."""

from typing import Final

from sqlalchemy import text

# The wallets of a business, with the sums of their usage debits and of their credits.
WALLETS: Final = text("""
    SELECT w.customer_id, w.currency, w.balance_minor, w.remainder,
        coalesce(sum(e.amount_minor) FILTER (WHERE e.kind = 'usage'), 0)::bigint AS debited_minor,
        coalesce(sum(e.amount_minor) FILTER (WHERE e.is_credit), 0)::bigint AS credited_minor
    FROM wallets w LEFT JOIN ledger_entries e USING (wallet_id)
    WHERE w.business_id = :business_id GROUP BY w.wallet_id
""")
# The balances of a business after each of its entries, in the order of each wallet's history.
BALANCES_AFTER: Final = text("""
    SELECT customer_id, currency, after_minor FROM ledger_entries
    WHERE business_id = :business_id ORDER BY wallet_id, version
""")
# The balances of some customers in the currency that they are billed in.
BALANCES: Final = text("""
    SELECT w.customer_id, w.balance_minor FROM wallets w
    JOIN customers c ON c.customer_id = w.customer_id AND c.billing_currency = w.currency
    WHERE w.customer_id = ANY(:customer_ids)
""")
# How many events of a business were refused, by reason.
REFUSED_BY_REASON: Final = text("""
    SELECT reason, count(*) AS events FROM refused_events
    WHERE business_id = :business_id GROUP BY reason
""")
# The paid orders of a business that have no credit yet.
UNCREDITED: Final = text("""
    SELECT count(*) FROM purchases WHERE business_id = :business_id AND is_due
""")
# The charges of a business: the purchase of each, the entries that credit it, and whether the
# provider is still to be asked.
CHARGED: Final = text("""
    SELECT c.charge_id, c.currency, p.origin, p.status, p.payment_id,
        c.status IN ('new', 'pending') AS is_open,
        coalesce(array_agg(e.amount_minor) FILTER (WHERE e.entry_id IS NOT NULL), '{}')
            AS credited_minor
    FROM charges c JOIN purchases p USING (purchase_id)
    LEFT JOIN ledger_entries e ON e.business_id = p.business_id AND e.kind = 'purchase'
        AND e.is_credit AND e.reference = p.purchase_id
    WHERE c.business_id = :business_id GROUP BY c.charge_id, p.purchase_id ORDER BY c.charge_id
""")
# The payments that webhooks of the provider reported, and that were applied.
REPORTED: Final = text("""
    SELECT DISTINCT payment_id FROM provider_events
    WHERE business_id = :business_id AND status = 'applied'
""")
