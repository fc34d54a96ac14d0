"""All SQL of packages, purchases and expiry, a sentence each."""

from typing import Final

from sqlalchemy import text

# --- packages -------------------------------------------------------------------------------------

_PACKAGE: Final = """package_id, business_id, name, currency, price_minor, credit_minor, valid_days,
    priority, archived_at, created_at"""

INSERT_PACKAGE: Final = text(f"""
    INSERT INTO credit_packages (package_id, business_id, name, currency, price_minor,
        credit_minor, valid_days, priority)
    VALUES (:package_id, :business_id, :name, :currency, :price_minor,
        :credit_minor, :valid_days, :priority)
    RETURNING {_PACKAGE}
""")
PACKAGE: Final = text(f"""
    SELECT {_PACKAGE} FROM credit_packages
    WHERE business_id = :business_id AND package_id = :package_id
""")
# Take a package off sale.
ARCHIVE_PACKAGE: Final = text("""
    UPDATE credit_packages SET archived_at = coalesce(archived_at, now())
    WHERE business_id = :business_id AND package_id = :package_id
""")
# A page of packages, the newest first.
PACKAGE_PAGE: Final = text(f"""
    SELECT {_PACKAGE} FROM credit_packages WHERE business_id = :business_id
        AND (archived_at IS NOT NULL) = :is_archived
        AND (CAST(:after AS text) IS NULL OR package_id < :after)
    ORDER BY package_id DESC LIMIT :page OFFSET :offset
""")

# --- purchases ------------------------------------------------------------------------------------

_PURCHASE: Final = """purchase_id, business_id, customer_id, currency, order_id, origin, package_id,
    price_minor, credit_minor, valid_days, priority, status, provider, payment_id, paid_minor,
    entry_id, refunded_minor, lost_minor, shortfall_minor, failure, is_due, created_at, paid_at,
    settled_at, (SELECT url FROM charges c WHERE c.purchase_id = purchases.purchase_id
    AND c.status IN ('new', 'pending')) AS payment_url"""

# Store a pending purchase, once per order number.
INSERT: Final = text(f"""
    INSERT INTO purchases (purchase_id, business_id, customer_id, currency, order_id, origin,
        package_id, price_minor, credit_minor, valid_days, priority)
    VALUES (:purchase_id, :business_id, :customer_id, :currency, :order_id, :origin,
        :package_id, :price_minor, :credit_minor, :valid_days, :priority)
    ON CONFLICT (business_id, order_id) DO NOTHING RETURNING {_PURCHASE}
""")
BY_ORDER: Final = text(f"""
    SELECT {_PURCHASE} FROM purchases WHERE business_id = :business_id AND order_id = :order_id
""")
PURCHASE: Final = text(f"""
    SELECT {_PURCHASE} FROM purchases
    WHERE business_id = :business_id AND purchase_id = :purchase_id
""")
# A page of purchases, the newest first.
PURCHASE_PAGE: Final = text(f"""
    SELECT {_PURCHASE} FROM purchases WHERE business_id = :business_id
        AND (CAST(:customer_id AS text) IS NULL OR customer_id = :customer_id)
        AND (CAST(:status AS text) IS NULL OR status = :status)
        AND (CAST(:after AS text) IS NULL OR purchase_id < :after)
    ORDER BY purchase_id DESC LIMIT :page OFFSET :offset
""")
# Lock a purchase: of two processes that settle it, the second waits and finds it done. NO KEY
# UPDATE, so that inserting a payment (a foreign-key check on this row) does not wait for it.
LOCK: Final = text(f"""
    SELECT {_PURCHASE} FROM purchases WHERE purchase_id = :purchase_id FOR NO KEY UPDATE
""")
# Record the state that a purchase has after it was settled.
SETTLED: Final = text("""
    UPDATE purchases SET status = :status, provider = :provider, payment_id = :payment_id,
        paid_minor = :paid_minor, paid_at = :paid_at, entry_id = :entry_id,
        refunded_minor = :refunded_minor, lost_minor = :lost_minor,
        shortfall_minor = :shortfall_minor, failure = :failure, is_due = false,
        settled_at = CASE WHEN CAST(:entry_id AS text) IS NULL THEN NULL
            ELSE coalesce(settled_at, clock_timestamp()) END,
        updated_at = clock_timestamp()
    WHERE purchase_id = :purchase_id
""")
# Purchases with facts that are not settled yet, the longest waiting first.
DUE: Final = text("SELECT purchase_id FROM purchases WHERE is_due ORDER BY updated_at LIMIT :page")
# A fact of a purchase was stored. The inbox settles the purchase in the same transaction; the mark
# is for facts that arrive by another way, and for a run that was cut short.
MARK_DUE: Final = text("""
    UPDATE purchases SET is_due = true, updated_at = clock_timestamp()
    WHERE purchase_id = :purchase_id
""")
# The ledger refuses to settle a purchase: record why, and wait for a new fact.
NOT_SETTLED: Final = text("""
    UPDATE purchases SET is_due = false, failure = :reason, updated_at = clock_timestamp()
    WHERE purchase_id = :purchase_id
""")
# The lot that the credit of a purchase made.
LOT_OF_ENTRY: Final = text("""
    SELECT lot_id FROM credit_lots WHERE wallet_id = :wallet_id AND entry_id = :entry_id
""")
# How much of a lot has expired.
EXPIRED_OF_LOT: Final = text("""
    SELECT coalesce(-sum(m.moved_minor), 0)::bigint FROM lot_moves m
        JOIN ledger_entries e USING (entry_id)
    WHERE m.wallet_id = :wallet_id AND m.lot_id = :lot_id AND e.kind = 'expiry'
""")
# The entries that took the credit of a purchase back or gave it again, the oldest first.
REVERSING: Final = text("""
    SELECT entry_id, is_credit FROM ledger_entries
    WHERE kind = 'reversal' AND reference = :purchase_id ORDER BY version
""")
# The credits that refunded a debit, the oldest first.
REFUNDS: Final = text("""
    SELECT entry_id, amount_minor FROM ledger_entries WHERE kind = 'refund' AND is_credit
        AND reference = :entry_id AND wallet_id = :wallet_id
    ORDER BY version
""")
# Whether a reversal may make a debt, or stops at zero.
REVERSAL_POLICY: Final = text("""
    SELECT reversal_policy FROM businesses WHERE business_id = :business_id
""")

# --- payments of a purchase -----------------------------------------------------------------------

# The columns of `Payment`.
PAYMENT_COLUMNS: Final = """business_id, provider, payment_id, status, amount_minor, currency,
    purchase_id, checkout_id, failure, parked_reason, is_accepted, occurred_at"""
# The payments of a purchase that have succeeded, the earliest first.
SUCCEEDED: Final = text(f"""
    SELECT {PAYMENT_COLUMNS} FROM payments
    WHERE purchase_id = :purchase_id AND status = 'succeeded' ORDER BY occurred_at, payment_id
""")
# Its other payments, the latest first.
UNSUCCESSFUL: Final = text(f"""
    SELECT {PAYMENT_COLUMNS} FROM payments
    WHERE purchase_id = :purchase_id AND status <> 'succeeded'
    ORDER BY occurred_at DESC, payment_id
""")
# Whether the customer can still pay for a purchase on a hosted page.
HAS_PAGE: Final = text("""
    SELECT EXISTS (SELECT FROM charges WHERE purchase_id = :purchase_id
        AND payment_method IS NULL AND status IN ('new', 'pending'))
""")
# Park a payment. SKIP LOCKED: a concurrent writer of this payment waits for our locks and parks it
# itself.
PARK_PAYMENT: Final = text("""
    UPDATE payments SET parked_reason = :reason WHERE (business_id, provider, payment_id) IN
        (SELECT business_id, provider, payment_id FROM payments WHERE business_id = :business_id
            AND provider = :provider AND payment_id = :payment_id FOR NO KEY UPDATE SKIP LOCKED)
""")
# The refunds and disputes of a payment, each once, even if the shop reported one before the
# provider reported the payment. One that ended with an amount in another currency counts as not
# ended: until a person enters the share, nothing is taken, and a disputed credit stays frozen.
REVERSALS: Final = text("""
    SELECT DISTINCT ON (kind, reversal_id) kind,
        CASE WHEN status IN ('succeeded', 'lost') AND amount_minor IS NOT NULL
                AND currency <> :currency
            THEN CASE kind WHEN 'dispute' THEN 'open' ELSE 'pending' END ELSE status END AS status,
        amount_minor, occurred_at, began_at
    FROM payment_reversals WHERE business_id = :business_id
        AND provider IN (:provider, 'shop') AND payment_id = :payment_id
    ORDER BY kind, reversal_id, provider = 'shop'
""")

# --- expiry ---------------------------------------------------------------------------------------

# clock_timestamp() is volatile: in a subquery it is evaluated once, so that the index can be used.
_MOMENT: Final = "(SELECT clock_timestamp())"

_EXPIRED: Final = f"""remaining_minor > 0 AND frozen_at IS NULL AND expires_at <= {_MOMENT}
    ORDER BY expires_at LIMIT"""
# Expired lots that may have something left, the longest expired first, with their wallets locked.
# SKIP LOCKED: wallets that other processes have locked are left out.
EXPIRED: Final = text(f"""
    SELECT l.lot_id, w.wallet_id FROM credit_lots l JOIN wallets w USING (wallet_id)
    WHERE {_EXPIRED} :page FOR NO KEY UPDATE OF w SKIP LOCKED
""")
# The wallets that were left out.
EXPIRED_BUT_HELD: Final = text(f"""
    SELECT DISTINCT wallet_id FROM (SELECT wallet_id FROM credit_lots WHERE {_EXPIRED} 100) l
    LIMIT :page
""")
# Wait for a lock at most one second, in this transaction.
WAIT_SHORTLY: Final = text("SET LOCAL lock_timeout = '1s'")
# Record that notices of lots are due, so many days before they expire, once per lot and number of
# days; not if that moment was before the lot was made. Lots that expire later are not read.
NOTE_EXPIRING: Final = text(f"""
    INSERT INTO lot_expiry_notices (wallet_id, lot_id, days_ahead)
    SELECT l.wallet_id, l.lot_id, d.days
    FROM credit_lots l CROSS JOIN unnest(CAST(:days_ahead AS integer[])) AS d (days)
    WHERE l.remaining_minor > 0 AND l.frozen_at IS NULL
        AND l.expires_at > {_MOMENT} AND l.expires_at <= {_MOMENT} + make_interval(days => d.days)
        AND l.expires_at <= {_MOMENT} + make_interval(days =>
            (SELECT max(days) FROM unnest(CAST(:days_ahead AS integer[])) AS f (days)))
        AND l.created_at < l.expires_at - make_interval(days => d.days)
        AND NOT EXISTS (SELECT FROM lot_expiry_notices n
            WHERE n.wallet_id = l.wallet_id AND n.lot_id = l.lot_id AND n.days_ahead = d.days)
    ORDER BY l.expires_at LIMIT :page ON CONFLICT DO NOTHING
    RETURNING wallet_id, lot_id, days_ahead
""")
# The lots that notices are about, with what is left of them.
EXPIRING: Final = text("""
    SELECT l.lot_id, l.business_id, w.customer_id, w.currency, l.source, l.amount_minor,
        CASE WHEN l.lot_id = w.lot_id THEN w.lot_left_minor ELSE l.remaining_minor END
            AS left_minor, l.expires_at
    FROM credit_lots l JOIN wallets w USING (wallet_id)
    WHERE l.wallet_id = ANY(:wallet_ids) AND l.lot_id = ANY(:lot_ids)
""")
