"""All SQL of providers' accounts and events, a sentence each."""

from typing import Final

from sqlalchemy import text

# --- accounts -------------------------------------------------------------------------------------

# Of the secrets only whether they are there.
_ACCOUNT: Final = """account_id, business_id, provider, name,
    webhook_secret IS NOT NULL AS has_webhook_secret, api_key IS NOT NULL AS has_api_key,
    base_url, product_id, disabled_at, created_at"""

# An account.
INSERT_ACCOUNT: Final = text(
    "INSERT INTO provider_accounts (account_id, business_id, provider, name, webhook_secret,"
    " api_key, base_url, product_id) VALUES (:account_id, :business_id, :provider, :name,"
    f" :webhook_secret, :api_key, :base_url, :product_id) RETURNING {_ACCOUNT}"
)
# A page of accounts, newest first, with those that are disabled.
ACCOUNT_PAGE: Final = text(
    f"SELECT {_ACCOUNT} FROM provider_accounts WHERE business_id = :business_id"
    " AND (CAST(:after AS text) IS NULL OR account_id < :after)"
    " ORDER BY account_id DESC LIMIT :page"
)
# Take no more webhooks of an account; one that is disabled keeps the time at which that was done.
DISABLE_ACCOUNT: Final = text(
    "UPDATE provider_accounts SET disabled_at = coalesce(disabled_at, now())"
    " WHERE business_id = :business_id AND account_id = :account_id"
)
# Whose webhook it may be: the account that is named, or two at most where none is.
ACCOUNT_OF: Final = text("SELECT * FROM provider_account_of(:provider, :account_id)")

# --- events ---------------------------------------------------------------------------------------

_EVENT: Final = """event_number, account_id, provider, provider_event_id, type, status, reason,
    payment_id, attempts, received_at, processed_at"""

# A verified webhook as it came, once per id of the provider.
RECEIVE: Final = text(
    "INSERT INTO provider_events (business_id, account_id, provider, provider_event_id, body)"
    " VALUES (:business_id, :account_id, :provider, :provider_event_id, :body)"
    " ON CONFLICT (account_id, provider_event_id) DO NOTHING RETURNING event_number"
)
# Events that nobody has processed yet, the oldest first.
WAITING: Final = text(
    "SELECT event_number FROM provider_events WHERE status = 'received'"
    " ORDER BY event_number LIMIT :page"
)
# One of them, locked; none if another is at work on it or done with it.
TAKE: Final = text(
    "SELECT business_id, provider, body, attempts FROM provider_events"
    " WHERE event_number = :event_number AND status = 'received' FOR UPDATE SKIP LOCKED"
)
# What has become of an event; what is not known of it now stays as it was.
PROCESSED: Final = text(
    "UPDATE provider_events SET status = :status, type = coalesce(:type, type),"
    " payment_id = coalesce(:payment_id, payment_id), reason = :reason, attempts = attempts + 1,"
    " processed_at = clock_timestamp() WHERE event_number = :event_number"
)
# Whether anything is known of a payment itself.
HAS_PAYMENT: Final = text(
    "SELECT EXISTS (SELECT FROM payments WHERE business_id = :business_id"
    " AND provider = :provider AND payment_id = :payment_id)"
)
# What a payment was made in.
CURRENCY: Final = text(
    "SELECT currency FROM payments WHERE business_id = :business_id"
    " AND provider = :provider AND payment_id = :payment_id"
)
# Why nothing follows from a payment that somebody has paid, while it was not called back.
PUT_ASIDE: Final = text(
    "SELECT parked_reason FROM payments p WHERE business_id = :business_id"
    " AND provider = :provider AND payment_id = :payment_id AND parked_reason IS NOT NULL"
    " AND NOT EXISTS (SELECT FROM payment_reversals r WHERE r.business_id = p.business_id"
    " AND r.provider = p.provider AND r.payment_id = p.payment_id)"
)
# Whether a dispute has not come to its end.
IS_OPEN: Final = text(
    "SELECT EXISTS (SELECT FROM payment_reversals WHERE business_id = :business_id"
    " AND provider = :provider AND kind = 'dispute' AND reversal_id = :dispute_id"
    " AND status = 'open')"
)
# What waited for a payment has been followed together with it. Not where some of it is in another
# currency, or of an unclear amount: then each event is looked at once more, and that one will say
# so.
APPLY_PARKED: Final = text(
    "UPDATE provider_events SET status = CASE WHEN reason = :unclear"
    " OR EXISTS (SELECT FROM payment_reversals r"
    " JOIN payments p USING (business_id, provider, payment_id)"
    " WHERE r.business_id = :business_id AND r.provider = :provider"
    " AND r.payment_id = :payment_id AND r.currency <> p.currency)"
    " THEN 'received' ELSE 'applied' END, reason = NULL,"
    " processed_at = clock_timestamp() WHERE event_number IN (SELECT event_number"
    " FROM provider_events WHERE business_id = :business_id AND payment_id = :payment_id"
    " AND provider = :provider AND status = 'parked' ORDER BY event_number FOR UPDATE)"
)
# A page of events of this business, newest first.
EVENT_PAGE: Final = text(
    f"SELECT {_EVENT} FROM provider_events WHERE business_id = :business_id"
    " AND (CAST(:status AS text) IS NULL OR status = :status)"
    " AND (CAST(:payment_id AS text) IS NULL OR payment_id = :payment_id)"
    " AND (CAST(:after AS bigint) IS NULL OR event_number < :after)"
    " ORDER BY event_number DESC LIMIT :page OFFSET :offset"
)
# Whether this business has an event.
HAS_EVENT: Final = text(
    "SELECT EXISTS (SELECT FROM provider_events"
    " WHERE business_id = :business_id AND event_number = :event_number)"
)
# Process one event anew, whatever became of it; one that waits is left alone, and so is one whose
# body is blanked, because nothing is left of it to process.
REPLAY_ONE: Final = text(
    "UPDATE provider_events SET status = 'received', attempts = 0"
    " WHERE business_id = :business_id AND event_number = :event_number AND status <> 'received'"
    " AND body <> ''"
)
# Process what is parked or failed anew, all of it or that of a payment; `before`: only what was
# processed before that moment. The oldest first.
REPLAY_OPEN: Final = text(
    "UPDATE provider_events SET status = 'received', attempts = 0 WHERE event_number IN ("
    "SELECT event_number FROM provider_events WHERE business_id = :business_id"
    " AND status IN ('parked', 'failed') AND body <> ''"
    " AND (CAST(:payment_id AS text) IS NULL OR payment_id = :payment_id)"
    " AND (CAST(:before AS timestamptz) IS NULL OR processed_at < :before)"
    " ORDER BY event_number LIMIT :replay_max FOR UPDATE)"
)
