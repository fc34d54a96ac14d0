"""All SQL of packages and purchases, a sentence each."""

from typing import Final

from sqlalchemy import text

from metering import locks

# The clock that decides.
CLOCK: Final = text("SELECT clock_timestamp()")

# --- packages -----------------------------------------------------------------------------------

_PACKAGE: Final = """package_id, business_id, name, currency, price_minor, credit_minor, valid_days,
    priority, archived_at, created_at"""

# A package.
INSERT_PACKAGE: Final = text(
    "INSERT INTO credit_packages (package_id, business_id, name, currency, price_minor,"
    " credit_minor, valid_days, priority) VALUES (:package_id, :business_id, :name, :currency,"
    f" :price_minor, :credit_minor, :valid_days, :priority) RETURNING {_PACKAGE}"
)
# One package of this business.
PACKAGE: Final = text(
    f"SELECT {_PACKAGE} FROM credit_packages"
    " WHERE business_id = :business_id AND package_id = :package_id"
)
# Sell it no more.
ARCHIVE_PACKAGE: Final = text(
    "UPDATE credit_packages SET archived_at = coalesce(archived_at, now())"
    " WHERE business_id = :business_id AND package_id = :package_id"
)
# A page of packages, newest first.
PACKAGE_PAGE: Final = text(
    f"SELECT {_PACKAGE} FROM credit_packages WHERE business_id = :business_id"
    " AND (archived_at IS NOT NULL) = :is_archived"
    " AND (CAST(:after AS text) IS NULL OR package_id < :after)"
    " ORDER BY package_id DESC LIMIT :page OFFSET :offset"
)

# --- purchases ----------------------------------------------------------------------------------

_PURCHASE: Final = """purchase_id, business_id, customer_id, currency, order_id, origin, package_id,
    price_minor, credit_minor, valid_days, priority, status, provider, payment_id, paid_minor,
    entry_id, refunded_minor, lost_minor, shortfall_minor, failure, is_due, created_at, paid_at,
    settled_at, (SELECT url FROM charges c WHERE c.purchase_id = purchases.purchase_id
    AND c.status IN ('new', 'pending')) AS payment_url"""

# A pending purchase, once per order number.
INSERT: Final = text(
    "INSERT INTO purchases (purchase_id, business_id, customer_id, currency, order_id, origin,"
    " package_id, price_minor, credit_minor, valid_days, priority) VALUES (:purchase_id,"
    " :business_id, :customer_id, :currency, :order_id, :origin, :package_id, :price_minor,"
    " :credit_minor, :valid_days, :priority)"
    f" ON CONFLICT (business_id, order_id) DO NOTHING RETURNING {_PURCHASE}"
)
# The purchase that an order number made.
BY_ORDER: Final = text(
    f"SELECT {_PURCHASE} FROM purchases WHERE business_id = :business_id AND order_id = :order_id"
)
# One purchase of this business.
PURCHASE: Final = text(
    f"SELECT {_PURCHASE} FROM purchases"
    " WHERE business_id = :business_id AND purchase_id = :purchase_id"
)
# A page of purchases, newest first.
PURCHASE_PAGE: Final = text(
    f"SELECT {_PURCHASE} FROM purchases WHERE business_id = :business_id"
    " AND (CAST(:customer_id AS text) IS NULL OR customer_id = :customer_id)"
    " AND (CAST(:status AS text) IS NULL OR status = :status)"
    " AND (CAST(:after AS text) IS NULL OR purchase_id < :after)"
    " ORDER BY purchase_id DESC LIMIT :page OFFSET :offset"
)
# One purchase, locked: of two that settle it at once the second waits and finds it done. Not
# against foreign keys: who notes a payment of it waits for what whoever settles it holds.
LOCK: Final = text(
    f"SELECT {_PURCHASE} FROM purchases WHERE purchase_id = :purchase_id FOR NO KEY UPDATE"
)
# The purchase as its facts have it.
SETTLED: Final = text(
    "UPDATE purchases SET status = :status, provider = :provider, payment_id = :payment_id,"
    " paid_minor = :paid_minor, paid_at = :paid_at, entry_id = :entry_id,"
    " refunded_minor = :refunded_minor, lost_minor = :lost_minor,"
    " shortfall_minor = :shortfall_minor, failure = :failure, is_due = false,"
    " settled_at = CASE WHEN CAST(:entry_id AS text) IS NULL THEN NULL"
    " ELSE coalesce(settled_at, clock_timestamp()) END,"
    " updated_at = clock_timestamp() WHERE purchase_id = :purchase_id"
)
# Purchases whose facts were not followed yet, the longest waiting first.
DUE: Final = text("SELECT purchase_id FROM purchases WHERE is_due ORDER BY updated_at LIMIT :page")
# Something new is known of a purchase.
MARK_DUE: Final = text(
    "UPDATE purchases SET is_due = true, updated_at = clock_timestamp()"
    " WHERE purchase_id = :purchase_id"
)
# The ledger refuses what a purchase calls for: it says why, until something new is known of it.
NOT_FOLLOWED: Final = text(
    "UPDATE purchases SET is_due = false, failure = :reason, updated_at = clock_timestamp()"
    " WHERE purchase_id = :purchase_id"
)
# The lot that the credit of a purchase made.
LOT_OF_ENTRY: Final = text(
    "SELECT lot_id FROM credit_lots WHERE wallet_id = :wallet_id AND entry_id = :entry_id"
)
# How much of a lot has expired.
EXPIRED_OF_LOT: Final = text(
    "SELECT coalesce(-sum(m.moved_minor), 0)::bigint FROM lot_moves m"
    " JOIN ledger_entries e USING (entry_id)"
    " WHERE m.wallet_id = :wallet_id AND m.lot_id = :lot_id AND e.kind = 'expiry'"
)
# The entries that took the credit of a purchase back, or gave it again, oldest first.
REVERSING: Final = text(
    "SELECT entry_id, is_credit FROM ledger_entries"
    " WHERE kind = 'reversal' AND reference = :purchase_id ORDER BY version"
)
# The credits that gave a debit back, oldest first.
REFUNDS: Final = text(
    "SELECT entry_id, amount_minor FROM ledger_entries WHERE kind = 'refund' AND is_credit"
    " AND reference = :entry_id AND wallet_id = :wallet_id ORDER BY version"
)
# What becomes of what cannot be taken back.
REVERSAL_POLICY: Final = text(
    "SELECT reversal_policy FROM businesses WHERE business_id = :business_id"
)

# --- expiry -------------------------------------------------------------------------------------

# Read once: the clock as it goes on is no bound for an index, and every lot would be looked at.
_MOMENT: Final = "(SELECT clock_timestamp())"

_EXPIRED: Final = f"""remaining_minor > 0 AND frozen_at IS NULL AND expires_at <= {_MOMENT}
    ORDER BY expires_at LIMIT"""
# Lots whose time is over and that anything may be left of, the longest over first, with their
# wallets locked. Wallets that others have locked are passed over (SKIP LOCKED).
EXPIRED: Final = text(
    "SELECT l.lot_id, w.wallet_id FROM credit_lots l JOIN wallets w USING (wallet_id)"
    f" WHERE {_EXPIRED} :page FOR NO KEY UPDATE OF w SKIP LOCKED"
)
# Wallets of such lots that were passed over.
EXPIRED_BUT_HELD: Final = text(
    "SELECT DISTINCT wallet_id FROM (SELECT wallet_id FROM credit_lots"
    f" WHERE {_EXPIRED} 100) l LIMIT :page"
)
# Wait for a lock no longer than this, in this transaction.
WAIT_SHORTLY: Final = text("SET LOCAL lock_timeout = '1s'")
# Note that lots are told of, so many days before their end, once each; not where that moment lay
# before the lot was made. Lots beyond the furthest of those days are not looked at.
NOTE_EXPIRING: Final = text(
    "INSERT INTO lot_expiry_notices (wallet_id, lot_id, days_ahead)"
    " SELECT l.wallet_id, l.lot_id, d.days"
    " FROM credit_lots l CROSS JOIN unnest(CAST(:days_ahead AS integer[])) AS d (days)"
    " WHERE l.remaining_minor > 0 AND l.frozen_at IS NULL"
    f" AND l.expires_at > {_MOMENT} AND l.expires_at <= {_MOMENT} + make_interval(days => d.days)"
    f" AND l.expires_at <= {_MOMENT} + make_interval(days =>"
    " (SELECT max(days) FROM unnest(CAST(:days_ahead AS integer[])) AS f (days)))"
    " AND l.created_at < l.expires_at - make_interval(days => d.days)"
    " AND NOT EXISTS (SELECT FROM lot_expiry_notices n"
    " WHERE n.wallet_id = l.wallet_id AND n.lot_id = l.lot_id AND n.days_ahead = d.days)"
    " ORDER BY l.expires_at LIMIT :page ON CONFLICT DO NOTHING"
    " RETURNING wallet_id, lot_id, days_ahead"
)
# What is told of lots, with what is left of them.
EXPIRING: Final = text(
    "SELECT l.lot_id, l.business_id, w.customer_id, w.currency, l.source, l.amount_minor,"
    " CASE WHEN l.lot_id = w.lot_id THEN w.lot_left_minor ELSE l.remaining_minor END AS left_minor,"
    " l.expires_at FROM credit_lots l JOIN wallets w USING (wallet_id)"
    " WHERE l.wallet_id = ANY(:wallet_ids) AND l.lot_id = ANY(:lot_ids)"
)

# --- facts --------------------------------------------------------------------------------------

# One at a time with a payment: of two facts that come at once, the second sees the first.
LOCK_PAYMENT: Final = text(
    f"SELECT pg_advisory_xact_lock({locks.PAYMENT},"
    " hashtext(:business_id || ' ' || :provider || ' ' || :payment_id))"
)
# What is said of a payment. Pending comes before failed, failed before succeeded, and none goes
# back. What it is for is what it says itself, or what the charge is for that made it, or what the
# shop has said of it before; of other businesses' purchases and charges nothing is believed.
NOTE_PAYMENT: Final = text("""
    INSERT INTO payments AS p (business_id, provider, payment_id, status, amount_minor, currency,
        purchase_id, checkout_id, failure, occurred_at)
    SELECT :business_id, :provider, :payment_id, :status, :amount_minor, :currency,
        coalesce(u.purchase_id, c.purchase_id,
            CASE WHEN c.checkout_id IS NULL THEN s.purchase_id END),
        CASE WHEN u.purchase_id IS NULL THEN c.checkout_id END, :failure, :occurred_at
    FROM (SELECT) nothing
    LEFT JOIN purchases u ON u.purchase_id = CAST(:purchase_id AS text)
        AND u.business_id = :business_id
    LEFT JOIN LATERAL (SELECT purchase_id, checkout_id FROM charges
        WHERE business_id = :business_id AND (charge_id = CAST(:charge_id AS text)
            OR (payment_id = CAST(:payment_id AS text) AND account_id IN (SELECT account_id
                FROM provider_accounts WHERE provider = CAST(:provider AS text))))
        ORDER BY charge_id = CAST(:charge_id AS text) DESC NULLS LAST LIMIT 1) c ON true
    LEFT JOIN payments s ON s.business_id = :business_id AND s.provider = 'shop'
        AND s.payment_id = :payment_id AND s.provider <> CAST(:provider AS text)
    ON CONFLICT (business_id, provider, payment_id) DO UPDATE SET
        status = CASE WHEN p.status = 'succeeded' OR excluded.status = 'pending' THEN p.status
            ELSE excluded.status END,
        amount_minor = CASE WHEN p.status = 'succeeded' THEN p.amount_minor
            ELSE excluded.amount_minor END,
        currency = CASE WHEN p.status = 'succeeded' THEN p.currency ELSE excluded.currency END,
        purchase_id = CASE WHEN p.checkout_id IS NULL
            THEN coalesce(p.purchase_id, excluded.purchase_id) END,
        checkout_id = CASE WHEN p.purchase_id IS NULL AND excluded.purchase_id IS NULL
            THEN coalesce(p.checkout_id, excluded.checkout_id) ELSE p.checkout_id END,
        failure = CASE WHEN p.status = 'succeeded' OR excluded.status = 'pending' THEN p.failure
            ELSE excluded.failure END,
        occurred_at = CASE WHEN p.status = 'succeeded' THEN p.occurred_at
            ELSE excluded.occurred_at END
    RETURNING purchase_id, checkout_id, status
""")
# Something new is known of a charge: it is looked at at once. One that had failed is open again if
# it was paid after all.
WAKE_CHARGE: Final = text(
    "UPDATE charges SET due_at = clock_timestamp(), updated_at = clock_timestamp(),"
    " status = CASE status WHEN 'failed' THEN 'pending' ELSE status END"
    " WHERE (purchase_id = CAST(:purchase_id AS text) OR checkout_id = CAST(:checkout_id AS text))"
    " AND (status IN ('new', 'pending') OR (status = 'failed' AND :status = 'succeeded'))"
)
# The charge of a purchase, locked.
LOCK_CHARGE: Final = text(
    "SELECT 1 FROM charges WHERE purchase_id = :purchase_id FOR NO KEY UPDATE"
)
# What is said of a refund or a dispute. An end stays an end, unless a later word overrules it. A
# refund has failed when that was first said. Of two totals of one moment the larger is the later.
NOTE_REVERSAL: Final = text("""
    INSERT INTO payment_reversals AS r (business_id, provider, kind, reversal_id, payment_id,
        status, amount_minor, currency, occurred_at, began_at)
    VALUES (:business_id, :provider, :kind, :reversal_id, :payment_id, :status, :amount_minor,
        :currency, :occurred_at, :began_at)
    ON CONFLICT (business_id, provider, kind, reversal_id) DO UPDATE SET
        status = excluded.status, occurred_at = excluded.occurred_at,
        amount_minor = coalesce(excluded.amount_minor, r.amount_minor),
        currency = CASE WHEN excluded.amount_minor IS NULL THEN r.currency
            ELSE excluded.currency END,
        began_at = coalesce(excluded.began_at, r.began_at)
    WHERE (r.status IN ('pending', 'open') AND excluded.status NOT IN ('pending', 'open'))
        OR ((r.status IN ('pending', 'open')) = (excluded.status IN ('pending', 'open'))
            AND CASE WHEN r.status = 'failed' AND excluded.status = 'failed'
                THEN excluded.occurred_at < r.occurred_at
                ELSE excluded.occurred_at > r.occurred_at END)
        OR (r.kind = 'refund_total' AND excluded.occurred_at = r.occurred_at
            AND excluded.amount_minor > r.amount_minor)
""")
# What is known of one payment.
PAYMENT: Final = text(
    "SELECT status, amount_minor, currency, purchase_id, checkout_id, parked_reason FROM payments"
    " WHERE business_id = :business_id AND provider = :provider AND payment_id = :payment_id"
)
# The payment that a provider tells of by this id: the purchase's own, where there are several.
TOLD: Final = text(
    "SELECT provider, payment_id, status, amount_minor, currency, purchase_id, checkout_id"
    " FROM payments WHERE business_id = :business_id AND provider = ANY('{dodo,stripe,local}')"
    " AND payment_id = :payment_id ORDER BY (purchase_id = :purchase_id) DESC NULLS LAST LIMIT 1"
)
# A person accepts a payment as paying for all of a purchase.
ACCEPT: Final = text(
    "UPDATE payments SET is_accepted = true, parked_reason = NULL, purchase_id = :purchase_id"
    " WHERE business_id = :business_id AND provider = :provider AND payment_id = :payment_id"
)
# A payment of a purchase that waits for a person.
WAITING: Final = text(
    "SELECT provider, payment_id, amount_minor, currency FROM payments"
    " WHERE purchase_id = :purchase_id AND status = 'succeeded' AND parked_reason IS NOT NULL"
    " ORDER BY occurred_at, payment_id LIMIT 1"
)
# The payments of a purchase that have succeeded, the first one first.
SUCCEEDED: Final = text(
    "SELECT provider, payment_id, amount_minor, currency, occurred_at, is_accepted FROM payments"
    " WHERE purchase_id = :purchase_id AND status = 'succeeded' ORDER BY occurred_at, payment_id"
)
# Its payments that have not, the newest first.
UNSUCCESSFUL: Final = text(
    "SELECT status, failure FROM payments WHERE purchase_id = :purchase_id"
    " AND status <> 'succeeded' ORDER BY occurred_at DESC, payment_id"
)
# Whether a purchase can still be paid on a page of the provider.
HAS_PAGE: Final = text(
    "SELECT EXISTS (SELECT FROM charges WHERE purchase_id = :purchase_id"
    " AND payment_method IS NULL AND status IN ('new', 'pending'))"
)
# A payment that nothing follows from waits to be looked at. One of which somebody is noting
# something is passed over: whoever that is waits for what we hold, and comes here afterwards.
PARK_PAYMENT: Final = text(
    "UPDATE payments SET parked_reason = :reason WHERE (business_id, provider, payment_id) IN"
    " (SELECT business_id, provider, payment_id FROM payments WHERE business_id = :business_id"
    " AND provider = :provider AND payment_id = :payment_id FOR NO KEY UPDATE SKIP LOCKED)"
)
# The refunds and disputes of a payment, each once, also where the shop has said it before the
# provider told of the payment. One that has ended with a sum in another currency has not: until a
# person says what share that is, nothing is taken, and what is in dispute stays frozen.
REVERSALS: Final = text(
    "SELECT DISTINCT ON (kind, reversal_id) kind, CASE WHEN status IN ('succeeded', 'lost')"
    " AND amount_minor IS NOT NULL AND currency <> :currency THEN CASE kind WHEN 'dispute'"
    " THEN 'open' ELSE 'pending' END ELSE status END, amount_minor, occurred_at, began_at"
    " FROM payment_reversals WHERE business_id = :business_id"
    " AND provider IN (:provider, 'shop') AND payment_id = :payment_id"
    " ORDER BY kind, reversal_id, provider = 'shop'"
)
# One refund or dispute, by the id of who says it.
REVERSAL: Final = text(
    "SELECT payment_id, status, amount_minor, currency FROM payment_reversals"
    " WHERE business_id = :business_id AND provider = :provider AND kind = :kind"
    " AND reversal_id = :reversal_id"
)
# All payments of a purchase, in the order in which they came.
PAYMENTS_OF_PURCHASE: Final = text(
    "SELECT provider, payment_id, status, amount_minor, currency, failure, parked_reason,"
    " occurred_at FROM payments WHERE purchase_id = :purchase_id AND business_id = :business_id"
    " ORDER BY created_at, payment_id"
)
# All refunds and disputes of the payments of a purchase, in the order in which they came.
REVERSALS_OF_PURCHASE: Final = text(
    "SELECT r.provider, r.kind, r.reversal_id, r.payment_id, r.status, r.amount_minor,"
    " coalesce(r.currency, p.currency) AS currency, r.occurred_at FROM payments p"
    " JOIN payment_reversals r USING (business_id, provider, payment_id)"
    " WHERE p.purchase_id = :purchase_id AND p.business_id = :business_id"
    " ORDER BY r.created_at, r.reversal_id"
)

# --- what waits for a person --------------------------------------------------------------------

# Over all businesses: payments that were not credited, charges whose end nobody knows, and events
# of providers from which nothing followed.
PARKED: Final = text(
    "SELECT (SELECT count(*) FROM payments WHERE parked_reason IS NOT NULL) AS payments,"
    " (SELECT count(*) FROM charges WHERE due_at = 'infinity' AND status IN ('new', 'pending'))"
    " AS charges, (SELECT count(*) FROM provider_events WHERE status IN ('parked', 'failed'))"
    " AS provider_events"
)
