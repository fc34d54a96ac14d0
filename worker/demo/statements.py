"""All SQL of the demo, a sentence each: it only reads."""

from typing import Final

from sqlalchemy import text

# Where the wallets of a business stand.
WALLETS: Final = text(
    "SELECT wallet_id, customer_id, currency, balance_minor, remainder FROM wallets"
    " WHERE business_id = :business_id ORDER BY wallet_id"
)
# Every entry of a business in the order of each wallet's history.
ENTRIES: Final = text(
    "SELECT customer_id, currency, version, kind, is_credit, amount_minor, after_minor"
    " FROM ledger_entries WHERE business_id = :business_id ORDER BY wallet_id, version"
)
# Balances of some customers in the currency that they are billed in.
BALANCES: Final = text(
    "SELECT w.customer_id, w.balance_minor FROM wallets w JOIN customers c"
    " ON c.customer_id = w.customer_id AND c.billing_currency = w.currency"
    " WHERE w.customer_id = ANY(:customer_ids)"
)
# How many events of a business were refused, by reason.
REFUSED_BY_REASON: Final = text(
    "SELECT reason, count(*) AS events FROM refused_events"
    " WHERE business_id = :business_id GROUP BY reason ORDER BY reason"
)
# Per batch after an id: its events, when the oldest of them was buffered (a stream id), and when
# the last of its debits was written (Unix time in seconds).
BATCHES_AFTER: Final = text(
    "SELECT b.posted_count + b.duplicate_count + b.refused_count AS events, b.first_stream_id,"
    " extract(epoch FROM coalesce(max(e.created_at), b.created_at)) AS debited_at"
    " FROM usage_batches b LEFT JOIN ledger_entries e ON e.batch_id = b.batch_id"
    " WHERE b.batch_id > :after GROUP BY b.batch_id ORDER BY b.batch_id"
)
# The newest batch there is.
LAST_BATCH: Final = text("SELECT coalesce(max(batch_id), 0) FROM usage_batches")
# Paid orders of a business that have no credit yet.
UNCREDITED: Final = text(
    "SELECT count(*) FROM purchases WHERE business_id = :business_id AND is_due"
)
# What was charged in a business: each purchase, the ledger's entries for it, and whether anybody
# is still to be asked.
CHARGED: Final = text(
    "SELECT c.charge_id, c.currency, p.origin, p.status, p.payment_id,"
    " c.status IN ('new', 'pending') AS is_open, coalesce(array_agg(e.amount_minor)"
    " FILTER (WHERE e.entry_id IS NOT NULL), '{}') AS credited_minor"
    " FROM charges c JOIN purchases p USING (purchase_id) LEFT JOIN ledger_entries e"
    " ON e.business_id = p.business_id AND e.kind = 'purchase' AND e.is_credit"
    " AND e.reference = p.purchase_id WHERE c.business_id = :business_id"
    " GROUP BY c.charge_id, p.purchase_id ORDER BY c.charge_id"
)
# Payments that a provider's webhooks have told of, and that were followed.
TOLD: Final = text(
    "SELECT DISTINCT payment_id FROM provider_events"
    " WHERE business_id = :business_id AND status = 'applied'"
)
