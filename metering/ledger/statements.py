"""All SQL of the ledger, a sentence each."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import TextClause, text

from metering.ledger.entry import Entry, Wallet
from metering.low_credit.statements import SPENDABLE

# The columns of `Wallet` and of `Entry`, in the order of their fields.
_WALLET: Final = ", ".join(
    "coalesce(chain, ''::bytea) AS chain" if field == "chain" else field for field in Wallet._fields
)
_ENTRY: Final = ", ".join(
    "metadata" if field == "metadata_json" else field for field in Entry._fields
)
_VALUES: Final = ", ".join(
    "CAST(:metadata_json AS json)" if field == "metadata_json" else f":{field}"
    for field in Entry._fields
)
ENTRY_COLUMNS: Final = _ENTRY
_CUSTOMER: Final = """customer_id, business_id, email, name, phone_number, preferred_locale,
    metadata, billing_currency, created_at, updated_at"""

# --- posting ------------------------------------------------------------------------------------

# Lock the wallets of a posting in the order of their ids, so that two postings never deadlock. NO
# KEY UPDATE: a foreign-key check on a wallet does not wait.
LOCK_WALLETS: Final = text(f"""
    SELECT {_WALLET} FROM wallets
    WHERE wallet_id = ANY(:wallet_ids) ORDER BY wallet_id FOR NO KEY UPDATE
""")
# Write entries; the columns are those that `post._line` writes.
COPY_ENTRIES: Final = f"COPY ledger_entries ({_ENTRY}) FROM STDIN"
# Write a few entries: one round trip where COPY needs three. Row-level security, under which the
# HTTP API works, allows INSERT but not COPY.
INSERT_ENTRIES: Final = text(f"""
    INSERT INTO ledger_entries ({_ENTRY}) VALUES ({_VALUES})
""")
# The fields of `Wallet` that a posting changes, with their types, and those that change when the
# current lot or the frozen credit may have changed.
MOVED: Final = {
    "balance_minor": "bigint",
    "remainder": "numeric",
    "version": "bigint",
    "chain": "bytea",
    "debited_minor": "bigint",
    "covered_minor": "bigint",
    "lot_left_minor": "bigint",
}
TURNED: Final = {
    **MOVED,
    "lot_id": "text",
    "lot_from_minor": "bigint",
    "lot_until": "timestamptz",
    "frozen_minor": "bigint",
}


def _write_wallets(fields: Mapping[str, str]) -> TextClause:
    """Return the statement that writes some fields of the wallets of a posting."""
    changes = ", ".join(f"{field} = m.{field}" for field in fields)
    arrays = ", ".join(f"CAST(:{field} AS {kind}[])" for field, kind in fields.items())
    return text(f"""
        UPDATE wallets w SET {changes}, updated_at = :now
        FROM unnest(CAST(:wallet_id AS text[]), {arrays}) AS m (wallet_id, {", ".join(fields)})
        WHERE w.wallet_id = m.wallet_id
    """)


MOVE_WALLETS: Final = _write_wallets(MOVED)
TURN_WALLETS: Final = _write_wallets(TURNED)
# The entry of an idempotency key.
ENTRY_BY_KEY: Final = text("""
    SELECT entry_id, wallet_id, request_digest FROM ledger_entries
    WHERE business_id = :business_id AND idempotency_key = :idempotency_key
""")

# --- businesses, customers and wallets -----------------------------------------------------------

INSERT_BUSINESS: Final = text("""
    INSERT INTO businesses (business_id, name) VALUES (:business_id, :name)
""")
# All businesses, oldest first.
BUSINESSES: Final = text("""
    SELECT business_id, name, created_at FROM businesses ORDER BY business_id
""")
INSERT_CUSTOMER: Final = text("""
    INSERT INTO customers (customer_id, business_id, email, name, phone_number,
        preferred_locale, metadata, billing_currency)
    VALUES (:customer_id, :business_id, :email, :name, :phone_number, :preferred_locale,
        CAST(:metadata AS json), :billing_currency)
""")
# One customer of this business.
CUSTOMER: Final = text(f"""
    SELECT {_CUSTOMER} FROM customers
    WHERE business_id = :business_id AND customer_id = :customer_id
""")
# Lock a customer before some of its fields are changed.
LOCK_CUSTOMER: Final = text("""
    SELECT 1 FROM customers WHERE business_id = :business_id AND customer_id = :customer_id
    FOR NO KEY UPDATE
""")
# A page of the customers of this business, newest first, after a place in that order.
CUSTOMER_PAGE: Final = text(f"""
    SELECT {_CUSTOMER} FROM customers
    WHERE business_id = :business_id
        AND (CAST(:email AS text) IS NULL OR email ILIKE :email)
        AND (CAST(:name AS text) IS NULL OR name ILIKE :name)
        AND (CAST(:created_at_gte AS timestamptz) IS NULL OR created_at >= :created_at_gte)
        AND (CAST(:created_at_lte AS timestamptz) IS NULL OR created_at <= :created_at_lte)
        AND (CAST(:after_at AS timestamptz) IS NULL
            OR (created_at, customer_id) < (:after_at, :after_id))
    ORDER BY created_at DESC, customer_id DESC LIMIT :page OFFSET :offset
""")
# Change all fields of a customer but the billing currency.
UPDATE_CUSTOMER: Final = text("""
    UPDATE customers SET email = :email, name = :name, phone_number = :phone_number,
        preferred_locale = :preferred_locale, metadata = CAST(:metadata AS json),
        updated_at = now()
    WHERE business_id = :business_id AND customer_id = :customer_id
""")
# Change the price list of a customer. It has a statement of its own, because a trigger then makes
# the compiled rate card of the business stale.
SET_BILLING_CURRENCY: Final = text("""
    UPDATE customers SET billing_currency = :billing_currency, updated_at = now()
    WHERE business_id = :business_id AND customer_id = :customer_id
""")
# A wallet at zero.
INSERT_WALLET: Final = text("""
    INSERT INTO wallets (wallet_id, business_id, customer_id, currency)
    VALUES (:wallet_id, :business_id, :customer_id, :currency)
""")
# Customers without a wallet in a currency that was configured later, a page at a time.
CUSTOMERS_WITHOUT_WALLET: Final = text("""
    SELECT c.customer_id, c.business_id FROM customers c
    WHERE NOT EXISTS (
        SELECT 1 FROM wallets w WHERE w.customer_id = c.customer_id AND w.currency = :currency)
    ORDER BY c.customer_id LIMIT :page
""")
# What customers owe, by currency, over all businesses.
WALLETS_BELOW_ZERO: Final = text("""
    SELECT currency, count(*) AS wallets, sum(balance_minor) AS balance_minor FROM wallets
    WHERE balance_minor < 0 GROUP BY currency ORDER BY currency
""")
# Make the rate cards and payers that processes keep in memory stale.
MOVE_ALL_RATE_CARDS: Final = text("UPDATE businesses SET rate_card_version = rate_card_version + 1")
# The wallets of a customer of this business and the credit that each can spend, by currency.
WALLETS_OF_CUSTOMER: Final = text(f"""
    SELECT {_WALLET}, created_at, updated_at, {SPENDABLE} AS spendable_minor FROM wallets w
    WHERE business_id = :business_id AND customer_id = :customer_id ORDER BY currency
""")
# Set how far below zero debits that are not usage may take a wallet.
SET_OVERDRAFT: Final = text("""
    UPDATE wallets SET overdraft_limit_minor = :limit_minor, updated_at = clock_timestamp()
    WHERE wallet_id = :wallet_id
""")
# Customers with their billing currency and wallets, for the debits of a batch.
CHARGEABLE: Final = text("""
    SELECT c.customer_id, c.business_id, c.billing_currency, w.wallet_id, w.currency
    FROM customers c LEFT JOIN wallets w ON w.customer_id = c.customer_id
    WHERE c.customer_id = ANY(:customer_ids)
""")

# --- history ------------------------------------------------------------------------------------

# A page of a wallet's history before a version, newest first. Entries written meanwhile do not
# move it.
HISTORY: Final = text(f"""
    SELECT {_ENTRY} FROM ledger_entries
    WHERE wallet_id = :wallet_id AND version < :before_version
    ORDER BY version DESC LIMIT :page
""")

# One entry of this business, and of this customer if one is given.
ENTRY: Final = text(f"""
    SELECT {_ENTRY} FROM ledger_entries
    WHERE entry_id = :entry_id AND business_id = :business_id
        AND (CAST(:customer_id AS text) IS NULL OR customer_id = :customer_id)
""")
# The entries that give debits of some wallets back, or call purchases back, the oldest first.
REVERSALS: Final = text("""
    SELECT reference, entry_id, kind, is_credit, amount_minor, created_at FROM ledger_entries
    WHERE kind IN ('refund', 'reversal') AND reference = ANY(CAST(:references AS text[]))
        AND wallet_id = ANY(CAST(:wallet_ids AS text[]))
    ORDER BY wallet_id, version
""")
# Entries of some wallets, each between two versions, newest first over all of them.
_ENTRIES = f"""SELECT {_ENTRY} FROM unnest(CAST(:wallet_ids AS text[]), CAST(:firsts AS bigint[]),
    CAST(:lasts AS bigint[])) AS r (of_wallet, first, last)
    CROSS JOIN LATERAL (SELECT * FROM ledger_entries e WHERE e.wallet_id = r.of_wallet
        AND e.version BETWEEN r.first AND r.last
        AND (CAST(:event_type AS text) IS NULL OR e.event_type = :event_type) {{narrowed}}
        ORDER BY e.version DESC LIMIT :reach) entries
    ORDER BY created_at DESC, wallet_id DESC, version DESC LIMIT :page OFFSET :offset"""
ENTRIES_OF_WALLETS: Final = text(_ENTRIES.format(narrowed=""))
# The same for a type that usage never has, by the partial index without usage.
ENTRIES_NOT_USAGE: Final = text(_ENTRIES.format(narrowed="AND e.kind <> 'usage'"))
# The place of an entry of this customer in the list.
ENTRY_PLACE: Final = text("""
    SELECT entry_id, wallet_id, version, created_at FROM ledger_entries
    WHERE entry_id = :entry_id AND business_id = :business_id AND customer_id = :customer_id
""")
# The last version of a wallet at a moment, or before it, by bisection: times never decrease as
# versions grow. Each step is a subquery. With a join the planner, which cannot know how few steps
# there are, would read the whole table.
VERSION_AT: Final = text("""
    WITH RECURSIVE halves (low, high) AS (
        SELECT CAST(0 AS bigint), CAST(:version AS bigint)
        UNION ALL
        SELECT CASE WHEN is_made THEN middle ELSE low END,
            CASE WHEN is_made THEN high ELSE middle - 1 END
        FROM (
            SELECT low, high, middle, (
                SELECT created_at < :moment OR (created_at = :moment AND NOT :is_before)
                FROM ledger_entries WHERE wallet_id = :wallet_id AND version = middle) AS is_made
            FROM (
                SELECT low, high, (low + high + 1) / 2 AS middle FROM halves WHERE low < high
            ) halved) checked)
    SELECT low FROM halves WHERE low >= high
""")

# --- policies -----------------------------------------------------------------------------------

# What happens to credit that is called back and already spent.
SET_REVERSAL_POLICY: Final = text("""
    UPDATE businesses SET reversal_policy = :policy WHERE business_id = :business_id
""")
# What happens to usage without a price. Compiled rate cards contain it, so they become stale.
SET_ON_UNMETERED: Final = text("""
    UPDATE businesses SET on_unmetered = :policy, rate_card_version = rate_card_version + 1
    WHERE business_id = :business_id AND on_unmetered <> :policy
""")
# One business with its policies.
BUSINESS: Final = text("""
    SELECT business_id, name, reversal_policy, on_unmetered, created_at FROM businesses
    WHERE business_id = :business_id
""")
