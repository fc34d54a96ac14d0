"""All SQL of top-up rules, a sentence each."""

from typing import Final

from sqlalchemy import text

from metering.low_credit.statements import SPENDABLE
from metering.money import INT64_MAX

# The moment by which rows of this transaction are dated.
TRANSACTION_CLOCK: Final = text("SELECT now()")

# --- rules ----------------------------------------------------------------------------------------

# Set the rule of a wallet. A change of what `retry_at` waits for ends the wait.
SET_RULE: Final = text("""
    INSERT INTO top_up_rules AS r (wallet_id, business_id, threshold_minor, package_id,
        account_id, payment_method, day_cap_minor, month_cap_minor, declines_max)
    VALUES (:wallet_id, :business_id, :threshold_minor, :package_id,
        :account_id, :payment_method, :day_cap_minor, :month_cap_minor, :declines_max)
    ON CONFLICT (wallet_id) DO UPDATE SET threshold_minor = excluded.threshold_minor,
        package_id = excluded.package_id, account_id = excluded.account_id,
        payment_method = excluded.payment_method, day_cap_minor = excluded.day_cap_minor,
        month_cap_minor = excluded.month_cap_minor, declines_max = excluded.declines_max,
        updated_at = clock_timestamp(),
        retry_at = CASE WHEN (r.package_id, r.account_id, r.payment_method, r.day_cap_minor,
                r.month_cap_minor) = (excluded.package_id, excluded.account_id,
                excluded.payment_method, excluded.day_cap_minor, excluded.month_cap_minor)
            THEN r.retry_at END
""")
_TOP_UP_OF_WALLET: Final = """p.customer_id = w.customer_id AND p.currency = w.currency
    AND p.origin = 'top_up'"""
# The running top-up of a wallet: its purchase is pending, or its charge has not ended.
_RUNNING: Final = f"""SELECT p.purchase_id FROM purchases p LEFT JOIN charges c
    USING (purchase_id) WHERE {_TOP_UP_OF_WALLET}
    AND (p.status = 'pending' OR c.status IN ('new', 'pending'))"""
_RULES: Final = f"""SELECT r.wallet_id, r.business_id, w.customer_id, w.currency,
    r.threshold_minor, r.package_id, r.account_id, r.payment_method, r.day_cap_minor,
    r.month_cap_minor, r.declines, r.declines_max, r.low_since, r.retry_at, r.disabled_at,
    r.disabled_reason, r.created_at, r.updated_at, ({_RUNNING} LIMIT 1) AS pending_purchase_id
    FROM top_up_rules r JOIN wallets w USING (wallet_id) WHERE r.business_id = :business_id"""
RULE: Final = text(f"{_RULES} AND r.wallet_id = :wallet_id")
# A page of rules, those of the newest wallets first.
RULE_PAGE: Final = text(f"""
    {_RULES} AND (CAST(:after AS text) IS NULL OR r.wallet_id < :after)
    ORDER BY r.wallet_id DESC LIMIT :page OFFSET :offset
""")
DELETE_RULE: Final = text("""
    DELETE FROM top_up_rules WHERE business_id = :business_id AND wallet_id = :wallet_id
""")
# Enable a rule and forget its declines.
ENABLE_RULE: Final = text("""
    UPDATE top_up_rules SET declines = 0, retry_at = NULL, disabled_at = NULL,
        disabled_reason = NULL, updated_at = clock_timestamp()
    WHERE business_id = :business_id AND wallet_id = :wallet_id
""")

# --- start ----------------------------------------------------------------------------------------

# Wallets whose rule wants a top-up, the longest waiting first.
WAITING_RULES: Final = text(f"""
    SELECT r.wallet_id FROM top_up_rules r JOIN wallets w USING (wallet_id)
    WHERE r.low_since IS NOT NULL AND r.disabled_at IS NULL
        AND (r.retry_at IS NULL OR r.retry_at <= :now) AND NOT EXISTS ({_RUNNING})
    ORDER BY r.low_since LIMIT :page
""")
# Lock a rule. SKIP LOCKED: no row if another process has locked it.
LOCK_RULE: Final = text("""
    SELECT 1 FROM top_up_rules WHERE wallet_id = :wallet_id AND low_since IS NOT NULL
        AND disabled_at IS NULL AND (retry_at IS NULL OR retry_at <= :now)
    FOR NO KEY UPDATE SKIP LOCKED
""")
# The state of a wallet whose rule is locked, and what was charged this day and month: pending and
# paid top-ups count, even if they were refunded. A sum beyond 64 bits is above every cap.
STANDING: Final = text(f"""
    SELECT r.business_id, w.customer_id, w.currency, r.threshold_minor, r.package_id, r.account_id,
        r.payment_method, r.day_cap_minor, r.month_cap_minor, r.declines, r.declines_max,
        {SPENDABLE} AS spendable_minor, w.balance_minor, w.debited_minor,
        EXISTS ({_RUNNING}) AS is_running,
        charged.day_minor, charged.month_minor
    FROM top_up_rules r JOIN wallets w USING (wallet_id) CROSS JOIN LATERAL (SELECT
        least(coalesce(sum(p.price_minor) FILTER (WHERE p.created_at >= :day_from
            AND p.created_at < :day_to), 0), {INT64_MAX})::bigint AS day_minor,
        least(coalesce(sum(p.price_minor), 0), {INT64_MAX})::bigint AS month_minor
        FROM purchases p
        WHERE {_TOP_UP_OF_WALLET} AND p.status <> 'failed'
            AND p.created_at >= :month_from AND p.created_at < :month_to) charged
    WHERE r.wallet_id = :wallet_id
""")
# The wallet is not low any more.
NOT_LOW: Final = text("UPDATE top_up_rules SET low_since = NULL WHERE wallet_id = :wallet_id")
# Charge nothing before a moment.
WAIT_UNTIL: Final = text("""
    UPDATE top_up_rules SET retry_at = :retry_at, updated_at = clock_timestamp()
    WHERE wallet_id = :wallet_id
""")
# Disable a rule. A rule that is disabled already keeps its time and reason.
DISABLE_RULE: Final = text("""
    UPDATE top_up_rules SET disabled_at = coalesce(disabled_at, clock_timestamp()),
        disabled_reason = coalesce(disabled_reason, :reason), updated_at = clock_timestamp()
    WHERE wallet_id = :wallet_id
    RETURNING business_id, threshold_minor, declines, declines_max, retry_at, true AS is_disabled
""")

# --- result ---------------------------------------------------------------------------------------

# Lock the rule that made a purchase. No row if the purchase is not a top-up. NO KEY UPDATE, as
# everywhere here: no lock is stronger than it must be.
LOCK_RULE_OF: Final = text("""
    SELECT r.wallet_id FROM top_up_rules r JOIN wallets w USING (wallet_id)
        JOIN purchases p ON p.customer_id = w.customer_id AND p.currency = w.currency
    WHERE p.purchase_id = :purchase_id AND p.origin = 'top_up' FOR NO KEY UPDATE OF r
""")
# A top-up was paid: forget the declines.
PAID: Final = text("""
    UPDATE top_up_rules SET declines = 0, retry_at = NULL, updated_at = clock_timestamp()
    WHERE wallet_id = :wallet_id
""")
# A top-up was declined. The next one waits, twice as long each time; after `declines_max` declines
# the rule is disabled.
DECLINED: Final = text("""
    UPDATE top_up_rules SET declines = declines + 1, updated_at = clock_timestamp(),
        retry_at = clock_timestamp() + make_interval(secs => least(CAST(:retry_max_s AS bigint),
            CAST(:retry_s AS bigint) << least(declines, 30))),
        disabled_at = coalesce(disabled_at,
            CASE WHEN declines + 1 >= declines_max THEN clock_timestamp() END),
        disabled_reason = coalesce(disabled_reason,
            CASE WHEN declines + 1 >= declines_max THEN 'too_many_declines' END)
    WHERE wallet_id = :wallet_id
    RETURNING business_id, threshold_minor, declines, declines_max, retry_at,
        disabled_at IS NOT NULL AS is_disabled
""")
