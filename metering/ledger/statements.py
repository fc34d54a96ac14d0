"""All SQL of the ledger, a sentence each."""

from typing import Final, LiteralString

from sqlalchemy import text

from metering.low_credit.statements import SPENDABLE

_WALLET: Final = """wallet_id, business_id, customer_id, currency, balance_minor, remainder,
    version, coalesce(chain, ''::bytea) AS chain, overdraft_limit_minor, debited_minor,
    covered_minor, lot_id, lot_left_minor, lot_from_minor, lot_until, frozen_minor"""

_ENTRY: Final[LiteralString] = """entry_id, wallet_id, version, business_id, customer_id,
    currency, amount_minor, is_credit, before_minor, after_minor, event_type, kind, reason,
    reference, idempotency_key, request_digest, batch_id, event_count, exact_cost,
    remainder_before, remainder_after, metadata, created_at, debited_before_minor, chain"""
ENTRY_COLUMNS: Final = _ENTRY

# --- posting ------------------------------------------------------------------------------------

# Lock the wallets of a posting once, in the order of their ids, so that two never deadlock.
LOCK_WALLETS: Final = text(
    f"SELECT {_WALLET} FROM wallets WHERE wallet_id = ANY(:wallet_ids)"
    " ORDER BY wallet_id FOR NO KEY UPDATE"
)
# Write entries; the columns are those that `post._line` writes.
COPY_ENTRIES: Final[LiteralString] = f"COPY ledger_entries ({_ENTRY}) FROM STDIN"
# Write a few entries: one round trip where `COPY` needs three, and also allowed behind row-level
# security, where the HTTP edge is.
INSERT_ENTRIES: Final = text(
    f"INSERT INTO ledger_entries ({_ENTRY}) VALUES (:entry_id, :wallet_id, :version, :business_id,"
    " :customer_id, :currency, :amount_minor, :is_credit, :before_minor, :after_minor, :event_type,"
    " :kind, :reason, :reference, :idempotency_key, :request_digest, :batch_id, :event_count,"
    " :exact_cost, :remainder_before, :remainder_after, CAST(:metadata_json AS json),"
    " :created_at, :debited_before_minor, :chain)"
)
_MOVE: Final = """UPDATE wallets w SET balance_minor = m.balance_minor, remainder = m.remainder,
    version = m.version, chain = m.chain, debited_minor = m.debited_minor,
    covered_minor = m.covered_minor, lot_left_minor = m.lot_left_minor, updated_at = :now {turn}
    FROM unnest(CAST(:wallet_ids AS text[]), CAST(:balances AS bigint[]),
        CAST(:remainders AS numeric[]), CAST(:versions AS bigint[]), CAST(:chains AS bytea[]),
        CAST(:debiteds AS bigint[]), CAST(:covereds AS bigint[]), CAST(:lefts AS bigint[]) {more})
        AS m (wallet_id, balance_minor, remainder, version, chain, debited_minor, covered_minor,
            lot_left_minor {names})
    WHERE w.wallet_id = m.wallet_id"""
# Move the balances of a posting to where its entries left them.
MOVE_WALLETS: Final = text(_MOVE.format(turn="", more="", names=""))
# The same where the turn may have passed to another lot.
TURN_WALLETS: Final = text(
    _MOVE.format(
        turn=", lot_id = m.lot_id, lot_from_minor = m.lot_from_minor, lot_until = m.lot_until,"
        " frozen_minor = m.frozen_minor",
        more=", CAST(:lot_ids AS text[]), CAST(:lot_froms AS bigint[]),"
        " CAST(:lot_untils AS timestamptz[]), CAST(:frozens AS bigint[])",
        names=", lot_id, lot_from_minor, lot_until, frozen_minor",
    )
)
# The entry that an idempotency key already made.
ENTRY_BY_KEY: Final = text(
    "SELECT entry_id, wallet_id, request_digest FROM ledger_entries"
    " WHERE business_id = :business_id AND idempotency_key = :idempotency_key"
)

# --- accounts -----------------------------------------------------------------------------------

# A business: the tenant that everything belongs to.
INSERT_BUSINESS: Final = text(
    "INSERT INTO businesses (business_id, name) VALUES (:business_id, :name)"
)
# All businesses, oldest first.
BUSINESSES: Final = text(
    "SELECT business_id, name, created_at FROM businesses ORDER BY business_id"
)
# A customer of a business.
INSERT_CUSTOMER: Final = text(
    "INSERT INTO customers (customer_id, business_id, email, name, phone_number,"
    " preferred_locale, metadata, billing_currency) VALUES (:customer_id, :business_id, :email,"
    " :name, :phone_number, :preferred_locale, CAST(:metadata AS json), :billing_currency)"
)
# One customer of this business.
CUSTOMER: Final = text(
    "SELECT customer_id, business_id, email, name, phone_number, preferred_locale, metadata,"
    " billing_currency, created_at, updated_at FROM customers"
    " WHERE business_id = :business_id AND customer_id = :customer_id"
)
# Lock a customer who is about to be changed in parts.
LOCK_CUSTOMER: Final = text(
    "SELECT 1 FROM customers WHERE business_id = :business_id AND customer_id = :customer_id"
    " FOR NO KEY UPDATE"
)
# A page of the customers of this business, newest first, before a place in that order.
CUSTOMER_PAGE: Final = text(
    "SELECT customer_id, business_id, email, name, phone_number, preferred_locale, metadata,"
    " billing_currency, created_at, updated_at FROM customers WHERE business_id = :business_id"
    " AND (CAST(:email AS text) IS NULL OR email ILIKE :email)"
    " AND (CAST(:name AS text) IS NULL OR name ILIKE :name)"
    " AND (CAST(:created_at_gte AS timestamptz) IS NULL OR created_at >= :created_at_gte)"
    " AND (CAST(:created_at_lte AS timestamptz) IS NULL OR created_at <= :created_at_lte)"
    " AND (CAST(:after_at AS timestamptz) IS NULL"
    " OR (created_at, customer_id) < (:after_at, :after_id))"
    " ORDER BY created_at DESC, customer_id DESC LIMIT :page OFFSET :offset"
)
# Change what a customer is called and reached by.
UPDATE_CUSTOMER: Final = text(
    "UPDATE customers SET email = :email, name = :name, phone_number = :phone_number,"
    " preferred_locale = :preferred_locale, metadata = CAST(:metadata AS json), updated_at = now()"
    " WHERE business_id = :business_id AND customer_id = :customer_id"
)
# Change which price list applies; apart, because compiled price lists end with it.
SET_BILLING_CURRENCY: Final = text(
    "UPDATE customers SET billing_currency = :billing_currency, updated_at = now()"
    " WHERE business_id = :business_id AND customer_id = :customer_id"
)
# A wallet at zero.
INSERT_WALLET: Final = text(
    "INSERT INTO wallets (wallet_id, business_id, customer_id, currency)"
    " VALUES (:wallet_id, :business_id, :customer_id, :currency)"
)
# Customers that have no wallet yet in a currency that was configured later, a page at a time.
CUSTOMERS_WITHOUT_WALLET: Final = text(
    "SELECT c.customer_id, c.business_id FROM customers c WHERE NOT EXISTS (SELECT 1 FROM wallets w"
    " WHERE w.customer_id = c.customer_id AND w.currency = :currency)"
    " ORDER BY c.customer_id LIMIT :page"
)
# What customers owe, by currency, over all businesses.
WALLETS_BELOW_ZERO: Final = text(
    "SELECT currency, count(*) AS wallets, sum(balance_minor) AS balance_minor FROM wallets"
    " WHERE balance_minor < 0 GROUP BY currency ORDER BY currency"
)
# Say that what processes keep of all customers and prices is out of date.
MOVE_ALL_RATE_CARDS: Final = text("UPDATE businesses SET rate_card_version = rate_card_version + 1")
# The wallets of a customer of this business, in the order of their currencies. The last column: the
# credit that can be spent.
WALLETS_OF_CUSTOMER: Final = text(
    f"SELECT {_WALLET}, created_at, updated_at, {SPENDABLE} AS spendable_minor FROM wallets w"
    " WHERE business_id = :business_id AND customer_id = :customer_id ORDER BY currency"
)
# How far a manual debit may go below zero.
SET_OVERDRAFT: Final = text(
    "UPDATE wallets SET overdraft_limit_minor = :limit_minor, updated_at = clock_timestamp()"
    " WHERE wallet_id = :wallet_id"
)
# Customers with their billing currency and wallets, for charging a batch.
CHARGEABLE: Final = text(
    "SELECT c.customer_id, c.business_id, c.billing_currency, w.wallet_id, w.currency"
    " FROM customers c LEFT JOIN wallets w ON w.customer_id = c.customer_id"
    " WHERE c.customer_id = ANY(:customer_ids)"
)

# --- history ------------------------------------------------------------------------------------

# A page of a wallet's history, newest first, before a version: stable while entries are added.
HISTORY: Final = text(
    f"SELECT {_ENTRY} FROM ledger_entries WHERE wallet_id = :wallet_id"
    " AND version < :before_version ORDER BY version DESC LIMIT :page"
)

# One entry of this business, of this customer if one is named.
ENTRY: Final = text(
    f"SELECT {_ENTRY} FROM ledger_entries WHERE entry_id = :entry_id"
    " AND business_id = :business_id"
    " AND (CAST(:customer_id AS text) IS NULL OR customer_id = :customer_id)"
)
# Entries of some wallets, each between two versions, newest first over all of them.
_ENTRIES = f"""SELECT {_ENTRY} FROM unnest(CAST(:wallet_ids AS text[]), CAST(:firsts AS bigint[]),
    CAST(:lasts AS bigint[])) AS r (of_wallet, first, last)
    CROSS JOIN LATERAL (SELECT * FROM ledger_entries e WHERE e.wallet_id = r.of_wallet
        AND e.version BETWEEN r.first AND r.last
        AND (CAST(:event_type AS text) IS NULL OR e.event_type = :event_type) {{narrowed}}
        ORDER BY e.version DESC LIMIT :reach) entries
    ORDER BY created_at DESC, wallet_id DESC, version DESC LIMIT :page OFFSET :offset"""
ENTRIES_OF_WALLETS: Final = text(_ENTRIES.format(narrowed=""))
# The same for a type that no usage has: by the index that leaves usage out.
ENTRIES_NOT_USAGE: Final = text(_ENTRIES.format(narrowed="AND e.kind <> 'usage'"))
# Where an entry of this customer stands.
ENTRY_PLACE: Final = text(
    "SELECT entry_id, wallet_id, version, created_at FROM ledger_entries"
    " WHERE entry_id = :entry_id AND business_id = :business_id AND customer_id = :customer_id"
)
# The last version of a wallet that was made up to a moment, or before it: time never goes back as
# versions grow, so halving finds it. A subquery per step, because a join makes the planner, which
# cannot know how few steps there are, read the whole table.
VERSION_AT: Final = text(
    "WITH RECURSIVE halves (low, high) AS (SELECT CAST(0 AS bigint), CAST(:version AS bigint)"
    " UNION ALL SELECT CASE WHEN is_made THEN middle ELSE low END,"
    " CASE WHEN is_made THEN high ELSE middle - 1 END FROM (SELECT low, high, middle,"
    " (SELECT created_at < :moment OR (created_at = :moment AND NOT :is_before)"
    " FROM ledger_entries WHERE wallet_id = :wallet_id AND version = middle) AS is_made"
    " FROM (SELECT low, high, (low + high + 1) / 2 AS middle FROM halves WHERE low < high)"
    " halved) looked) SELECT low FROM halves WHERE low >= high"
)

# --- businesses ---

SET_REVERSAL_POLICY: Final = text(
    "UPDATE businesses SET reversal_policy = :policy WHERE business_id = :business_id"
)
# What becomes of usage that nothing prices: part of what compiled rate cards say.
SET_ON_UNMETERED: Final = text(
    "UPDATE businesses SET on_unmetered = :policy, rate_card_version = rate_card_version + 1"
    " WHERE business_id = :business_id AND on_unmetered <> :policy"
)
# One business, with what it has decided.
BUSINESS: Final = text(
    "SELECT business_id, name, reversal_policy, on_unmetered, created_at FROM businesses"
    " WHERE business_id = :business_id"
)
