"""All SQL of charges, a sentence each."""

from typing import Final

from sqlalchemy import text

# A charge with `due_at` infinity is parked, until a person looks at it or a new fact arrives.
_CHARGE: Final = """c.charge_id, c.business_id, c.account_id, c.customer_id, c.purchase_id,
    c.checkout_id, c.amount_minor, c.currency, c.payment_method, c.return_url, c.status,
    c.payment_id, c.url, c.failure, c.attempts, c.created_at, c.due_at = 'infinity' AS is_parked"""

# --- claim, call, record --------------------------------------------------------------------------

INSERT_CHARGE: Final = text("""
    INSERT INTO charges (charge_id, business_id, account_id, customer_id, purchase_id,
        checkout_id, amount_minor, currency, payment_method, return_url)
    VALUES (:charge_id, :business_id, :account_id, :customer_id, :purchase_id,
        :checkout_id, :amount_minor, :currency, :payment_method, :return_url)
""")
# Charges whose next attempt is due, the longest waiting first. clock_timestamp() is volatile: in a
# subquery it is evaluated once, so that the index can be used.
DUE_CHARGES: Final = text("""
    SELECT charge_id FROM charges WHERE status IN ('new', 'pending')
        AND due_at <= (SELECT clock_timestamp())
    ORDER BY due_at LIMIT :page
""")
# Claim a charge that is due. The claim ends by itself, so a process that dies gives the charge
# back: soon if the provider keeps idempotency keys.
CLAIM: Final = text(f"""
    UPDATE charges c SET attempts = attempts + 1, updated_at = clock_timestamp(),
        due_at = clock_timestamp() + make_interval(secs => CASE WHEN a.provider = ANY(:keyed)
            THEN CAST(:keyed_lease_s AS integer) ELSE CAST(:lease_s AS integer) END)
    FROM provider_accounts a WHERE a.account_id = c.account_id
        AND charge_id = :charge_id AND status IN ('new', 'pending')
        AND due_at <= clock_timestamp()
    RETURNING {_CHARGE}
""")
# The rest of what a request for a charge needs: customer, account, order and age. `refusal`: why it
# must not be requested for the first time any more.
REQUEST: Final = text("""
    SELECT c.business_id, u.email, u.name, a.provider, a.api_key, a.base_url,
        a.product_id, c.status IN ('new', 'pending') AS is_open,
        coalesce(p.order_id, c.checkout_id) AS ordered,
        extract(epoch FROM clock_timestamp() - c.created_at)::bigint AS age_s,
        coalesce(k.expires_at <= clock_timestamp(), false) AS is_over,
        CASE WHEN k.expires_at <= clock_timestamp() THEN 'expired'
            WHEN a.disabled_at IS NOT NULL THEN 'account_disabled'
            WHEN p.origin = 'top_up' AND NOT EXISTS (SELECT FROM top_up_rules r
                JOIN wallets w USING (wallet_id)
                WHERE w.customer_id = p.customer_id AND w.currency = p.currency
                    AND r.disabled_at IS NULL) THEN 'top_up_disabled' END AS refusal
    FROM charges c JOIN customers u USING (customer_id) JOIN provider_accounts a USING (account_id)
        LEFT JOIN purchases p USING (purchase_id) LEFT JOIN checkouts k USING (checkout_id)
    WHERE c.charge_id = :charge_id
""")
# The provider has accepted a charge: look it up later, but soon after its checkout expires. Leave
# `due_at` alone if the charge was claimed or woken meanwhile.
CHARGE_PENDING: Final = text("""
    UPDATE charges c SET status = 'pending', payment_id = coalesce(:payment_id, payment_id),
        url = coalesce(:url, url), updated_at = clock_timestamp(),
        due_at = CASE WHEN attempts = :attempts AND due_at > clock_timestamp()
            THEN least(clock_timestamp() + make_interval(secs => :wait_s),
                (SELECT CASE WHEN k.expires_at > clock_timestamp() THEN k.expires_at END
                    FROM checkouts k WHERE k.checkout_id = c.checkout_id))
            ELSE due_at END
    WHERE charge_id = :charge_id AND status IN ('new', 'pending')
""")
# The outcome is unknown: try again after a while. A wake-up that came meanwhile is kept unless it
# has been handled.
POSTPONE_CHARGE: Final = text("""
    UPDATE charges SET due_at = clock_timestamp() + make_interval(secs => :wait_s),
        updated_at = clock_timestamp()
    WHERE charge_id = :charge_id AND status IN ('new', 'pending')
        AND attempts = :attempts AND (due_at > clock_timestamp() OR :is_handled)
""")
# The outcome cannot be found out automatically: wait for a person.
PARK_CHARGE: Final = text("""
    UPDATE charges SET due_at = 'infinity', failure = :reason, updated_at = clock_timestamp()
    WHERE charge_id = :charge_id AND status IN ('new', 'pending')
""")
END_CHARGE: Final = text("""
    UPDATE charges SET status = :status, payment_id = coalesce(:payment_id, payment_id),
        failure = :failure, due_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE charge_id = :charge_id AND status IN ('new', 'pending')
""")
# A new fact about a charge: make it due now. A failed charge opens again if it was paid after all.
WAKE_CHARGE: Final = text("""
    UPDATE charges SET due_at = clock_timestamp(), updated_at = clock_timestamp(),
        status = CASE status WHEN 'failed' THEN 'pending' ELSE status END
    WHERE (purchase_id = CAST(:purchase_id AS text) OR checkout_id = CAST(:checkout_id AS text))
        AND (status IN ('new', 'pending') OR (status = 'failed' AND :status = 'succeeded'))
""")

# --- read -----------------------------------------------------------------------------------------

# Lock the charge of a purchase or of a checkout. NO KEY UPDATE, so that foreign-key checks on it do
# not wait.
LOCK_CHARGE_OF: Final = text(f"""
    SELECT {_CHARGE} FROM charges c WHERE purchase_id = CAST(:purchase_id AS text)
        OR checkout_id = CAST(:checkout_id AS text)
    FOR NO KEY UPDATE
""")
CHARGE_OF: Final = text(f"SELECT {_CHARGE} FROM charges c WHERE purchase_id = :purchase_id")
CHARGE: Final = text(f"""
    SELECT {_CHARGE} FROM charges c WHERE business_id = :business_id AND charge_id = :charge_id
""")
# A page of the charges of a business, the newest first; if asked for, only the parked ones.
CHARGE_PAGE: Final = text(f"""
    SELECT {_CHARGE} FROM charges c WHERE business_id = :business_id
        AND (NOT :is_parked OR (due_at = 'infinity' AND status IN ('new', 'pending')))
        AND (CAST(:after AS text) IS NULL OR charge_id < :after)
    ORDER BY charge_id DESC LIMIT :page OFFSET :offset
""")
# The provider account that is named, or all enabled ones of the business.
ACCOUNTS: Final = text("""
    SELECT account_id, disabled_at IS NULL AS is_enabled FROM provider_accounts
    WHERE business_id = :business_id AND (account_id = CAST(:account_id AS text)
        OR (CAST(:account_id AS text) IS NULL AND disabled_at IS NULL))
    ORDER BY account_id
""")
