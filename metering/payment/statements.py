"""All SQL of provider accounts, provider events, payments and reversals, a sentence each."""

from typing import Final

from sqlalchemy import text

from metering import locks
from metering.purchase.statements import PAYMENT_COLUMNS

# --- accounts -------------------------------------------------------------------------------------

# Of the secrets, only whether they exist.
_ACCOUNT: Final = """account_id, business_id, provider, name,
    webhook_secret IS NOT NULL AS has_webhook_secret, api_key IS NOT NULL AS has_api_key,
    base_url, product_id, disabled_at, created_at"""

INSERT_ACCOUNT: Final = text(f"""
    INSERT INTO provider_accounts (account_id, business_id, provider, name, webhook_secret,
        api_key, base_url, product_id)
    VALUES (:account_id, :business_id, :provider, :name, :webhook_secret,
        :api_key, :base_url, :product_id)
    RETURNING {_ACCOUNT}
""")
# A page of accounts, the newest first, with the disabled ones.
ACCOUNT_PAGE: Final = text(f"""
    SELECT {_ACCOUNT} FROM provider_accounts
    WHERE business_id = :business_id AND (CAST(:after AS text) IS NULL OR account_id < :after)
    ORDER BY account_id DESC LIMIT :page
""")
# Accept no more webhooks of an account. An account that is disabled already keeps its time.
DISABLE_ACCOUNT: Final = text("""
    UPDATE provider_accounts SET disabled_at = coalesce(disabled_at, now())
    WHERE business_id = :business_id AND account_id = :account_id
""")
# The account that sends a webhook: the one that is named; up to two if none is named.
ACCOUNT_OF: Final = text("SELECT * FROM provider_account_of(:provider, :account_id)")

# --- events ---------------------------------------------------------------------------------------

_EVENT: Final = """event_number, account_id, provider, provider_event_id, type, status, reason,
    payment_id, attempts, received_at, processed_at"""

# Store a verified webhook, once per id of the provider.
RECEIVE: Final = text("""
    INSERT INTO provider_events (business_id, account_id, provider, provider_event_id, body)
    VALUES (:business_id, :account_id, :provider, :provider_event_id, :body)
    ON CONFLICT (account_id, provider_event_id) DO NOTHING RETURNING event_number
""")
# Events that are not processed yet, the oldest first.
WAITING: Final = text("""
    SELECT event_number FROM provider_events WHERE status = 'received'
    ORDER BY event_number LIMIT :page
""")
# Lock one of them. SKIP LOCKED: no row if another process is working on it.
TAKE: Final = text("""
    SELECT business_id, provider, body, attempts FROM provider_events
    WHERE event_number = :event_number AND status = 'received' FOR UPDATE SKIP LOCKED
""")
# Record the outcome of an event. A type or payment that is unknown this time keeps its value.
PROCESSED: Final = text("""
    UPDATE provider_events SET status = :status, type = coalesce(:type, type),
        payment_id = coalesce(:payment_id, payment_id), reason = :reason, attempts = attempts + 1,
        processed_at = clock_timestamp()
    WHERE event_number = :event_number
""")
# A page of events of this business, the newest first.
EVENT_PAGE: Final = text(f"""
    SELECT {_EVENT} FROM provider_events WHERE business_id = :business_id
        AND (CAST(:status AS text) IS NULL OR status = :status)
        AND (CAST(:payment_id AS text) IS NULL OR payment_id = :payment_id)
        AND (CAST(:after AS bigint) IS NULL OR event_number < :after)
    ORDER BY event_number DESC LIMIT :page OFFSET :offset
""")
HAS_EVENT: Final = text("""
    SELECT EXISTS (SELECT FROM provider_events
        WHERE business_id = :business_id AND event_number = :event_number)
""")
# Process one event again, whatever its status, unless it is waiting or its body was blanked.
REPLAY_ONE: Final = text("""
    UPDATE provider_events SET status = 'received', attempts = 0
    WHERE business_id = :business_id AND event_number = :event_number AND status <> 'received'
        AND body <> ''
""")
# Process parked and failed events again, all or those of a payment, the oldest first; `before`:
# only events that were processed before that moment.
REPLAY_OPEN: Final = text("""
    UPDATE provider_events SET status = 'received', attempts = 0 WHERE event_number IN (
        SELECT event_number FROM provider_events
        WHERE business_id = :business_id AND status IN ('parked', 'failed') AND body <> ''
            AND (CAST(:payment_id AS text) IS NULL OR payment_id = :payment_id)
            AND (CAST(:before AS timestamptz) IS NULL OR processed_at < :before)
        ORDER BY event_number LIMIT :replay_max FOR UPDATE)
""")
# Mark the parked events of a payment as applied, because their facts have been applied with it.
# An event goes back to `received` if its amount was unclear, or if a reversal of the payment is in
# another currency: when it runs again, it names the problem.
APPLY_PARKED: Final = text("""
    UPDATE provider_events SET status = CASE WHEN reason = :unclear
            OR EXISTS (SELECT FROM payment_reversals r
                JOIN payments p USING (business_id, provider, payment_id)
                WHERE r.business_id = :business_id AND r.provider = :provider
                    AND r.payment_id = :payment_id AND r.currency <> p.currency)
        THEN 'received' ELSE 'applied' END, reason = NULL, processed_at = clock_timestamp()
    WHERE event_number IN (SELECT event_number FROM provider_events
        WHERE business_id = :business_id AND payment_id = :payment_id AND provider = :provider
            AND status = 'parked'
        ORDER BY event_number FOR UPDATE)
""")

# --- payments -------------------------------------------------------------------------------------

# Facts of one payment wait for each other: the second sees the first.
LOCK_PAYMENT: Final = text(f"""
    SELECT pg_advisory_xact_lock({locks.PAYMENT},
        hashtext(:business_id || ' ' || :provider || ' ' || :payment_id))
""")
# Store a fact of a payment. Its status goes from pending to failed to succeeded and never back. It
# pays for the purchase that it names, else for that of its charge, else for the one for which the
# shop has reported it. Purchases and charges of other businesses are not believed.
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
PAYMENT: Final = text(f"""
    SELECT {PAYMENT_COLUMNS} FROM payments
    WHERE business_id = :business_id AND provider = :provider AND payment_id = :payment_id
""")
# Why a paid payment is parked. None if it is not, or if any of it was reversed.
PARKED_REASON: Final = text("""
    SELECT parked_reason FROM payments p WHERE business_id = :business_id
        AND provider = :provider AND payment_id = :payment_id AND parked_reason IS NOT NULL
        AND NOT EXISTS (SELECT FROM payment_reversals r WHERE r.business_id = p.business_id
            AND r.provider = p.provider AND r.payment_id = p.payment_id)
""")
# The provider's payment with this id; if several providers use the id, the purchase's own.
PROVIDER_PAYMENT: Final = text(f"""
    SELECT {PAYMENT_COLUMNS} FROM payments
    WHERE business_id = :business_id AND provider <> 'shop' AND payment_id = :payment_id
    ORDER BY (purchase_id = :purchase_id) DESC NULLS LAST LIMIT 1
""")
# A person accepts a payment for all of a purchase.
ACCEPT: Final = text("""
    UPDATE payments SET is_accepted = true, parked_reason = NULL, purchase_id = :purchase_id
    WHERE business_id = :business_id AND provider = :provider AND payment_id = :payment_id
""")
# The first payment of a purchase that waits for a person.
PARKED_PAYMENT: Final = text(f"""
    SELECT {PAYMENT_COLUMNS} FROM payments
    WHERE purchase_id = :purchase_id AND status = 'succeeded' AND parked_reason IS NOT NULL
    ORDER BY occurred_at, payment_id LIMIT 1
""")
# All payments of a purchase, in the order of their arrival.
PAYMENTS_OF_PURCHASE: Final = text("""
    SELECT provider, payment_id, status, amount_minor, currency, failure, parked_reason, occurred_at
    FROM payments WHERE purchase_id = :purchase_id AND business_id = :business_id
    ORDER BY created_at, payment_id
""")

# --- reversals ------------------------------------------------------------------------------------

# Store a fact of a refund or dispute. One that has ended stays so, unless a later fact ends it
# differently. The first failure of a refund counts. Of two totals of one moment the larger is the
# later one.
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
REVERSAL: Final = text("""
    SELECT payment_id, status, amount_minor, currency FROM payment_reversals
    WHERE business_id = :business_id AND provider = :provider AND kind = :kind
        AND reversal_id = :reversal_id
""")
# All refunds and disputes of the payments of a purchase, in the order of their arrival.
REVERSALS_OF_PURCHASE: Final = text("""
    SELECT r.provider, r.kind, r.reversal_id, r.payment_id, r.status, r.amount_minor,
        coalesce(r.currency, p.currency) AS currency, r.occurred_at
    FROM payments p JOIN payment_reversals r USING (business_id, provider, payment_id)
    WHERE p.purchase_id = :purchase_id AND p.business_id = :business_id
    ORDER BY r.created_at, r.reversal_id
""")

# --- what waits for a person ----------------------------------------------------------------------

# In all businesses: payments that were not credited, charges whose outcome is unknown, and provider
# events that were not applied.
PARKED: Final = text("""
    SELECT (SELECT count(*) FROM payments WHERE parked_reason IS NOT NULL) AS payments,
        (SELECT count(*) FROM charges WHERE due_at = 'infinity' AND status IN ('new', 'pending'))
            AS charges,
        (SELECT count(*) FROM provider_events WHERE status IN ('parked', 'failed'))
            AS provider_events
""")
