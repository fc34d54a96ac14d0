"""All SQL of charges, checkouts and top-up rules, a sentence each."""

from typing import Final

from sqlalchemy import text

from metering import locks
from metering.low_credit.statements import SPENDABLE
from metering.money import INT64_MAX

# The clock that decides.
CLOCK: Final = text("SELECT clock_timestamp()")
# The moment that rows of this transaction are dated by.
TRANSACTION_CLOCK: Final = text("SELECT now()")

# --- charges ------------------------------------------------------------------------------------

# `infinity`: parked, until somebody looks at it or something new is known of it.
_CHARGE: Final = """c.charge_id, c.business_id, c.account_id, c.customer_id, c.purchase_id,
    c.checkout_id, c.amount_minor, c.currency, c.payment_method, c.return_url, c.status,
    c.payment_id, c.url, c.failure, c.attempts, c.created_at, c.due_at = 'infinity' AS is_parked"""

# A charge that nobody was asked for yet.
INSERT_CHARGE: Final = text(
    "INSERT INTO charges (charge_id, business_id, account_id, customer_id, purchase_id,"
    " checkout_id, amount_minor, currency, payment_method, return_url) VALUES (:charge_id,"
    " :business_id, :account_id, :customer_id, :purchase_id, :checkout_id, :amount_minor,"
    " :currency, :payment_method, :return_url)"
)
# Charges to ask for, or to look after, the longest waiting first. The clock is read once: as it
# goes on it is no bound for an index.
DUE_CHARGES: Final = text(
    "SELECT charge_id FROM charges WHERE status IN ('new', 'pending')"
    " AND due_at <= (SELECT clock_timestamp()) ORDER BY due_at LIMIT :page"
)
# Take a charge that is due, for so long that a process which dies meanwhile gives it back: a short
# time where the provider keeps idempotency keys.
CLAIM: Final = text(
    "UPDATE charges c SET attempts = attempts + 1, updated_at = clock_timestamp(),"
    " due_at = clock_timestamp() + make_interval(secs => CASE WHEN a.provider = ANY(:keyed)"
    " THEN CAST(:keyed_lease_s AS integer) ELSE CAST(:lease_s AS integer) END)"
    " FROM provider_accounts a WHERE a.account_id = c.account_id"
    " AND charge_id = :charge_id AND status IN ('new', 'pending')"
    f" AND due_at <= clock_timestamp() RETURNING {_CHARGE}"
)
# What a charge is asked for with: whom it is for, through which account, and of which age it is.
# `refusal`: why nobody is asked for the first time any more.
TO_ASK: Final = text(
    "SELECT c.business_id, u.email, u.name, a.account_id, a.provider, a.api_key, a.base_url,"
    " a.product_id, c.status IN ('new', 'pending') AS is_open,"
    " coalesce(p.order_id, c.checkout_id) AS ordered,"
    " extract(epoch FROM clock_timestamp() - c.created_at)::bigint AS age_s,"
    " coalesce(k.expires_at <= clock_timestamp(), false) AS is_over,"
    " CASE WHEN k.expires_at <= clock_timestamp() THEN 'expired'"
    " WHEN a.disabled_at IS NOT NULL THEN 'account_disabled'"
    " WHEN p.origin = 'top_up' AND NOT EXISTS (SELECT FROM top_up_rules r JOIN wallets w"
    " USING (wallet_id) WHERE w.customer_id = p.customer_id AND w.currency = p.currency"
    " AND r.disabled_at IS NULL) THEN 'top_up_disabled' END AS refusal"
    " FROM charges c JOIN customers u USING (customer_id) JOIN provider_accounts a"
    " USING (account_id) LEFT JOIN purchases p USING (purchase_id)"
    " LEFT JOIN checkouts k USING (checkout_id) WHERE c.charge_id = :charge_id"
)
# The provider has taken a charge on: it is looked at again, but not long after its time is over.
# Whoever has claimed it since, or was told of something new, keeps his turn.
CHARGE_PENDING: Final = text(
    "UPDATE charges c SET status = 'pending', payment_id = coalesce(:payment_id, payment_id),"
    " url = coalesce(:url, url), updated_at = clock_timestamp(),"
    " due_at = CASE WHEN attempts = :attempts AND due_at > clock_timestamp()"
    " THEN least(clock_timestamp() + make_interval(secs => :wait_s), (SELECT CASE"
    " WHEN k.expires_at > clock_timestamp() THEN k.expires_at END FROM checkouts k"
    " WHERE k.checkout_id = c.checkout_id)) ELSE due_at END"
    " WHERE charge_id = :charge_id AND status IN ('new', 'pending')"
)
# Nobody knows what has become of a charge: it is tried again after a while. So it is as well if
# somebody was told of something new meanwhile, unless that was followed already.
POSTPONE_CHARGE: Final = text(
    "UPDATE charges SET due_at = clock_timestamp() + make_interval(secs => :wait_s),"
    " updated_at = clock_timestamp() WHERE charge_id = :charge_id AND status IN ('new', 'pending')"
    " AND attempts = :attempts AND (due_at > clock_timestamp() OR :is_followed)"
)
# Nobody finds out by himself what has become of a charge: it waits to be looked at.
PARK_CHARGE: Final = text(
    "UPDATE charges SET due_at = 'infinity', failure = :reason, updated_at = clock_timestamp()"
    " WHERE charge_id = :charge_id AND status IN ('new', 'pending')"
)
# A charge has come to its end.
END_CHARGE: Final = text(
    "UPDATE charges SET status = :status, payment_id = coalesce(:payment_id, payment_id),"
    " failure = :failure, due_at = clock_timestamp(), updated_at = clock_timestamp()"
    " WHERE charge_id = :charge_id AND status IN ('new', 'pending')"
)
# The charge of a purchase or of a checkout, locked.
LOCK_CHARGE_OF: Final = text(
    f"SELECT {_CHARGE} FROM charges c WHERE purchase_id = CAST(:purchase_id AS text)"
    " OR checkout_id = CAST(:checkout_id AS text) FOR NO KEY UPDATE"
)
# The charge of a purchase.
CHARGE_OF: Final = text(f"SELECT {_CHARGE} FROM charges c WHERE purchase_id = :purchase_id")
# One charge of this business.
CHARGE: Final = text(
    f"SELECT {_CHARGE} FROM charges c WHERE business_id = :business_id AND charge_id = :charge_id"
)
# A page of the charges of a business, newest first; the parked ones only, if they are wanted.
CHARGE_PAGE: Final = text(
    f"SELECT {_CHARGE} FROM charges c WHERE business_id = :business_id"
    " AND (NOT :is_parked OR (due_at = 'infinity' AND status IN ('new', 'pending')))"
    " AND (CAST(:after AS text) IS NULL OR charge_id < :after)"
    " ORDER BY charge_id DESC LIMIT :page OFFSET :offset"
)
# What has become of a purchase.
PURCHASE_OUTCOME: Final = text(
    "SELECT customer_id, currency, origin, status, price_minor, payment_id, failure FROM purchases"
    " WHERE purchase_id = :purchase_id"
)
# The accounts of a business: the one that was named, or all that are in use.
ACCOUNTS: Final = text(
    "SELECT account_id, disabled_at IS NULL AS is_enabled FROM provider_accounts"
    " WHERE business_id = :business_id AND (account_id = CAST(:account_id AS text)"
    " OR (CAST(:account_id AS text) IS NULL AND disabled_at IS NULL)) ORDER BY account_id"
)

# --- checkouts ----------------------------------------------------------------------------------

# Requests with one idempotency key queue up.
LOCK_KEY: Final = text(f"""
    SELECT pg_advisory_xact_lock({locks.CHECKOUT_KEY},
        hashtext(:business_id || ' ' || :idempotency_key))
""")
# The checkout that an idempotency key already made.
CHECKOUT_BY_KEY: Final = text(
    "SELECT checkout_id, request_digest FROM checkouts"
    " WHERE business_id = :business_id AND idempotency_key = :idempotency_key"
)
# A checkout; one that leaves nothing to be paid is complete at once.
INSERT_CHECKOUT: Final = text(
    "INSERT INTO checkouts (checkout_id, business_id, customer_id, currency, amount_minor,"
    " credit_minor, payment_minor, status, idempotency_key, request_digest, debit_entry_id,"
    " expires_at, ended_at) VALUES (:checkout_id, :business_id, :customer_id, :currency,"
    " :amount_minor, :credit_minor, :payment_minor, :status, :idempotency_key, :request_digest,"
    " :debit_entry_id, clock_timestamp() + make_interval(secs => :ttl_s),"
    " CASE WHEN :status <> 'pending' THEN clock_timestamp() END)"
)
_CHECKOUT: Final = """k.checkout_id, k.business_id, k.customer_id, k.currency, k.amount_minor,
    k.credit_minor, k.payment_minor, k.status, k.idempotency_key, k.debit_entry_id,
    k.release_entry_id, coalesce(k.failure, c.failure) AS failure, k.expires_at, k.created_at,
    k.ended_at, c.charge_id, c.account_id, c.payment_id, c.url AS payment_url"""
_CHECKOUTS: Final = f"""SELECT {_CHECKOUT} FROM checkouts k
    LEFT JOIN charges c ON c.checkout_id = k.checkout_id WHERE k.business_id = :business_id"""
# One checkout of this business, with its charge.
CHECKOUT: Final = text(f"{_CHECKOUTS} AND k.checkout_id = :checkout_id")
# A page of the checkouts of a customer, newest first.
CHECKOUT_PAGE: Final = text(
    f"{_CHECKOUTS} AND k.customer_id = :customer_id"
    " AND (CAST(:after AS text) IS NULL OR k.checkout_id < :after)"
    " ORDER BY k.checkout_id DESC LIMIT :page OFFSET :offset"
)
# One checkout, locked after its charge: of two that settle it the second finds it done.
LOCK_CHECKOUT: Final = text(
    f"SELECT {_CHECKOUT} FROM checkouts k LEFT JOIN charges c ON c.checkout_id = k.checkout_id"
    " WHERE k.checkout_id = :checkout_id FOR NO KEY UPDATE OF k"
)
# What is known of the payments of a checkout, the first one first.
PAYMENTS: Final = text(
    "SELECT provider, payment_id, status, amount_minor, currency, failure FROM payments"
    " WHERE checkout_id = :checkout_id ORDER BY occurred_at, payment_id"
)
# A checkout has come to its end.
END_CHECKOUT: Final = text(
    "UPDATE checkouts SET status = :status, release_entry_id = :release_entry_id,"
    " failure = :failure, ended_at = clock_timestamp() WHERE checkout_id = :checkout_id"
)
# What of the credit of a checkout was given back, oldest first.
GIVEN_BACK: Final = text(
    "SELECT entry_id, amount_minor FROM ledger_entries"
    " WHERE kind = 'refund' AND reference = :debit_entry_id ORDER BY version"
)
# Take a payment that came too late for its checkout, unless somebody is noting something of it:
# whoever that is comes here afterwards.
LOCK_LATE: Final = text(
    "SELECT 1 FROM payments WHERE business_id = :business_id AND provider = :provider"
    " AND payment_id = :payment_id AND checkout_id = :checkout_id FOR NO KEY UPDATE SKIP LOCKED"
)
# It pays for a purchase instead.
MOVE_PAYMENT: Final = text(
    "UPDATE payments SET checkout_id = NULL, purchase_id = :purchase_id, parked_reason = NULL"
    " WHERE business_id = :business_id AND provider = :provider AND payment_id = :payment_id"
)

# --- top-up rules -------------------------------------------------------------------------------

# A rule of a wallet. What is set anew need not wait for what the old one waited for.
SET_RULE: Final = text(
    "INSERT INTO top_up_rules AS r (wallet_id, business_id, threshold_minor, package_id,"
    " account_id, payment_method, day_cap_minor, month_cap_minor, declines_max)"
    " VALUES (:wallet_id, :business_id, :threshold_minor, :package_id, :account_id,"
    " :payment_method, :day_cap_minor, :month_cap_minor, :declines_max)"
    " ON CONFLICT (wallet_id) DO UPDATE SET threshold_minor = excluded.threshold_minor,"
    " package_id = excluded.package_id, account_id = excluded.account_id,"
    " payment_method = excluded.payment_method, day_cap_minor = excluded.day_cap_minor,"
    " month_cap_minor = excluded.month_cap_minor, declines_max = excluded.declines_max,"
    " updated_at = clock_timestamp(), retry_at = CASE WHEN (r.package_id, r.account_id,"
    " r.payment_method, r.day_cap_minor, r.month_cap_minor) = (excluded.package_id,"
    " excluded.account_id, excluded.payment_method, excluded.day_cap_minor,"
    " excluded.month_cap_minor) THEN r.retry_at END"
)
_TOP_UP_OF_WALLET: Final = """p.customer_id = w.customer_id AND p.currency = w.currency
    AND p.origin = 'top_up'"""
# The top-up of a wallet that is under way: its purchase is pending, or its charge has not ended.
_UNDER_WAY: Final = f"""SELECT p.purchase_id FROM purchases p LEFT JOIN charges c
    USING (purchase_id) WHERE {_TOP_UP_OF_WALLET}
    AND (p.status = 'pending' OR c.status IN ('new', 'pending'))"""
_RULES: Final = f"""SELECT r.wallet_id, r.business_id, w.customer_id, w.currency,
    r.threshold_minor, r.package_id, r.account_id, r.payment_method, r.day_cap_minor,
    r.month_cap_minor, r.declines, r.declines_max, r.low_since, r.retry_at, r.disabled_at,
    r.disabled_reason, r.created_at, r.updated_at, ({_UNDER_WAY} LIMIT 1) AS pending_purchase_id
    FROM top_up_rules r JOIN wallets w USING (wallet_id) WHERE r.business_id = :business_id"""
# The rule of one wallet.
RULE: Final = text(f"{_RULES} AND r.wallet_id = :wallet_id")
# A page of rules, the newest wallet first.
RULE_PAGE: Final = text(
    f"{_RULES} AND (CAST(:after AS text) IS NULL OR r.wallet_id < :after)"
    " ORDER BY r.wallet_id DESC LIMIT :page OFFSET :offset"
)
# Take a rule away.
DELETE_RULE: Final = text(
    "DELETE FROM top_up_rules WHERE business_id = :business_id AND wallet_id = :wallet_id"
)
# Begin anew, whatever was declined before.
ENABLE_RULE: Final = text(
    "UPDATE top_up_rules SET declines = 0, retry_at = NULL, disabled_at = NULL,"
    " disabled_reason = NULL, updated_at = clock_timestamp()"
    " WHERE business_id = :business_id AND wallet_id = :wallet_id"
)
# Rules that want a top-up, the longest waiting first.
WAITING_RULES: Final = text(
    "SELECT r.wallet_id FROM top_up_rules r JOIN wallets w USING (wallet_id)"
    " WHERE r.low_since IS NOT NULL AND r.disabled_at IS NULL"
    f" AND (r.retry_at IS NULL OR r.retry_at <= :now) AND NOT EXISTS ({_UNDER_WAY})"
    " ORDER BY r.low_since LIMIT :page"
)
# Take a rule; one that somebody else has in hand is passed over.
LOCK_RULE: Final = text(
    "SELECT 1 FROM top_up_rules WHERE wallet_id = :wallet_id AND low_since IS NOT NULL"
    " AND disabled_at IS NULL AND (retry_at IS NULL OR retry_at <= :now)"
    " FOR NO KEY UPDATE SKIP LOCKED"
)
# How things stand with a wallet whose rule is locked, and what was charged in the day and in the
# month: what is pending or was paid counts, whatever was refunded since. More than 64 bits is as
# much as no cap allows.
STANDING: Final = text(f"""
    SELECT r.business_id, w.customer_id, w.currency, r.threshold_minor, r.package_id, r.account_id,
        r.payment_method, r.day_cap_minor, r.month_cap_minor, r.declines, r.declines_max,
        {SPENDABLE} AS spendable_minor, w.balance_minor, w.debited_minor,
        EXISTS ({_UNDER_WAY}) AS is_under_way,
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
# A wallet has risen again by other means.
NOT_LOW: Final = text("UPDATE top_up_rules SET low_since = NULL WHERE wallet_id = :wallet_id")
# Nothing is charged before a moment.
WAIT_UNTIL: Final = text(
    "UPDATE top_up_rules SET retry_at = :retry_at, updated_at = clock_timestamp()"
    " WHERE wallet_id = :wallet_id"
)
# Charge no more.
DISABLE_RULE: Final = text(
    "UPDATE top_up_rules SET disabled_at = coalesce(disabled_at, clock_timestamp()),"
    " disabled_reason = coalesce(disabled_reason, :reason), updated_at = clock_timestamp()"
    " WHERE wallet_id = :wallet_id RETURNING business_id, threshold_minor, declines,"
    " declines_max, retry_at, true AS is_disabled"
)
# The rule of a purchase's wallet, locked.
LOCK_RULE_OF: Final = text(
    "SELECT r.wallet_id FROM top_up_rules r JOIN wallets w USING (wallet_id) JOIN purchases p"
    " ON p.customer_id = w.customer_id AND p.currency = w.currency"
    " WHERE p.purchase_id = :purchase_id AND p.origin = 'top_up' FOR NO KEY UPDATE OF r"
)
# A top-up was paid.
PAID: Final = text(
    "UPDATE top_up_rules SET declines = 0, retry_at = NULL, updated_at = clock_timestamp()"
    " WHERE wallet_id = :wallet_id"
)
# A top-up was declined: the next one waits, each time twice as long, and the last one is the last.
DECLINED: Final = text(
    "UPDATE top_up_rules SET declines = declines + 1, updated_at = clock_timestamp(),"
    " retry_at = clock_timestamp() + make_interval(secs => least(CAST(:retry_max_s AS bigint),"
    " CAST(:retry_s AS bigint) << least(declines, 30))),"
    " disabled_at = coalesce(disabled_at, CASE WHEN declines + 1 >= declines_max"
    " THEN clock_timestamp() END),"
    " disabled_reason = coalesce(disabled_reason, CASE WHEN declines + 1 >= declines_max"
    " THEN 'too_many_declines' END)"
    " WHERE wallet_id = :wallet_id RETURNING business_id, threshold_minor, declines, declines_max,"
    " retry_at, disabled_at IS NOT NULL AS is_disabled"
)
