"""The tables of the path: usage, prices, the ledger, alerts and webhooks.

Money is `bigint` minor units; a part of a minor unit is `numeric`. Ids are text in C
collation: they sort by time and compare as bytes. Every row carries `business_id`.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY_PARTITIONS = 8

TENANTS = """
CREATE TABLE businesses (
    business_id text COLLATE "C" PRIMARY KEY,
    name text NOT NULL CHECK (name <> ''),
    -- Grows with every change of a meter or a price. A compiled rate card is valid for one version.
    rate_card_version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE customers (
    customer_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    email text NOT NULL,
    name text NOT NULL,
    phone_number text,
    preferred_locale text,
    metadata json NOT NULL DEFAULT '{}',
    -- Which price list applies where a meter has several; NULL: the installation's default.
    billing_currency text CHECK (billing_currency ~ '^[A-Z]{3}$'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX customers_of_business ON customers (business_id, customer_id);
-- A billing currency decides about prices, so its change moves the version of the rate card too.
CREATE FUNCTION move_rate_card() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE businesses SET rate_card_version = rate_card_version + 1
    WHERE business_id = NEW.business_id;
    RETURN NULL;
END $$;
CREATE TRIGGER customers_billing_currency AFTER UPDATE OF billing_currency ON customers
    FOR EACH ROW EXECUTE FUNCTION move_rate_card();
"""

LEDGER = """
CREATE TABLE wallets (
    wallet_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    customer_id text COLLATE "C" NOT NULL REFERENCES customers ON DELETE RESTRICT,
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    balance_minor bigint NOT NULL DEFAULT 0,
    -- The part of past costs below one minor unit. It is carried to the next debit.
    remainder numeric NOT NULL DEFAULT 0 CHECK (remainder >= 0 AND remainder < 1),
    version bigint NOT NULL DEFAULT 0 CHECK (version >= 0),
    -- Digest of the last entry; NULL while there is none.
    chain bytea CHECK (octet_length(chain) = 32),
    -- How far below zero a manual debit may go. Usage that has happened is always debited.
    overdraft_limit_minor bigint NOT NULL DEFAULT 0 CHECK (overdraft_limit_minor >= 0),
    -- Number of the last alert about this wallet. The numbers have no gaps.
    alert_sequence bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (customer_id, currency),
    CHECK ((version = 0) = (chain IS NULL)),
    CHECK (version > 0 OR (balance_minor = 0 AND remainder = 0))
) WITH (fillfactor = 70);

CREATE TABLE usage_batches (
    batch_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard integer NOT NULL,
    epoch text NOT NULL,
    first_stream_id text NOT NULL,
    last_stream_id text NOT NULL,
    posted_count integer NOT NULL CHECK (posted_count >= 0),
    duplicate_count integer NOT NULL CHECK (duplicate_count >= 0),
    refused_count integer NOT NULL CHECK (refused_count >= 0),
    -- Posted events that no meter matched. They cost nothing.
    unmetered_count integer NOT NULL CHECK (unmetered_count BETWEEN 0 AND posted_count),
    -- Events that were read again after the commit of their batch. They are counted here only.
    replayed_count integer NOT NULL CHECK (replayed_count >= 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ledger_entries (
    entry_id text COLLATE "C" NOT NULL UNIQUE,
    -- No foreign keys to wallet and batch: `check_chain` looks both up for all entries of a
    -- statement at once, at a fifth of the cost of two foreign keys. Neither can be deleted.
    wallet_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    business_id text COLLATE "C" NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    currency text NOT NULL,
    amount_minor bigint NOT NULL,
    is_credit boolean NOT NULL,
    before_minor bigint NOT NULL,
    after_minor bigint NOT NULL,
    event_type text NOT NULL CHECK (event_type IN ('payment', 'payment_reversal', 'refund',
        'refund_reversal', 'dispute', 'dispute_reversal', 'merchant_adjustment')),
    kind text NOT NULL,
    reason text,
    reference text,
    idempotency_key text,
    request_digest bytea,
    batch_id bigint,
    event_count integer NOT NULL DEFAULT 0 CHECK (event_count >= 0),
    -- Postgres orders NaN above every number, so a lower bound alone would admit it.
    exact_cost numeric NOT NULL CHECK (exact_cost >= 0 AND exact_cost < 'Infinity'),
    remainder_before numeric NOT NULL CHECK (remainder_before >= 0 AND remainder_before < 1),
    remainder_after numeric NOT NULL CHECK (remainder_after >= 0 AND remainder_after < 1),
    metadata json NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    chain bytea NOT NULL CHECK (octet_length(chain) = 32),
    PRIMARY KEY (wallet_id, version),
    -- A batch of usage may cost less than a minor unit. Then all of it goes to the remainder.
    CHECK (amount_minor > 0 OR (amount_minor = 0 AND kind = 'usage')),
    CHECK (after_minor = before_minor
        + CASE WHEN is_credit THEN amount_minor ELSE -amount_minor END),
    -- No part of a minor unit is lost: remainder before + cost = amount + remainder after.
    CHECK (remainder_before + exact_cost = amount_minor + remainder_after OR kind <> 'usage'),
    CHECK (kind = 'usage' OR remainder_before = remainder_after),
    CHECK (kind IN ('usage', 'manual', 'purchase', 'correction')),
    CHECK (kind <> 'usage' OR NOT is_credit),
    CHECK ((kind = 'usage') = (batch_id IS NOT NULL)),
    CHECK ((idempotency_key IS NULL) = (request_digest IS NULL))
);
CREATE UNIQUE INDEX ledger_entries_idempotency ON ledger_entries (business_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
-- One entry per wallet and batch. More if the batch was split around a bad event.
CREATE INDEX ledger_entries_of_batch ON ledger_entries (batch_id, wallet_id)
    WHERE batch_id IS NOT NULL;
-- A purchase is credited once, also when the code is wrong.
CREATE UNIQUE INDEX ledger_entries_of_purchase ON ledger_entries (reference)
    WHERE kind = 'purchase';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is refused: rows of % are for ever; correct with a new entry',
        TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER wallets_stay BEFORE DELETE OR TRUNCATE ON wallets
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_batches_stay BEFORE DELETE OR TRUNCATE ON usage_batches
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_entries_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Each entry names its wallet's owner and continues the one before it. A statement trigger: it
-- checks all entries of an INSERT with one query.
CREATE FUNCTION check_chain() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE broken record;
BEGIN
    SELECT n.wallet_id, n.version INTO broken
    FROM added n
    LEFT JOIN ledger_entries p ON p.wallet_id = n.wallet_id AND p.version = n.version - 1
    LEFT JOIN wallets w ON w.wallet_id = n.wallet_id AND w.business_id = n.business_id
        AND w.customer_id = n.customer_id AND w.currency = n.currency
    LEFT JOIN usage_batches b ON b.batch_id = n.batch_id
    WHERE w.wallet_id IS NULL OR (n.batch_id IS NOT NULL AND b.batch_id IS NULL)
       OR n.before_minor <> coalesce(p.after_minor, 0)
       OR n.remainder_before <> coalesce(p.remainder_after, 0)
       OR (n.version > 1 AND p.version IS NULL)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entry % of wallet % does not continue the one before it',
            broken.version, broken.wallet_id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ledger_entries_chained AFTER INSERT ON ledger_entries
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION check_chain();
"""

USAGE = """
CREATE TABLE usage_event_keys (
    -- 128-bit hash of business and event id.
    event_key uuid NOT NULL,
    -- Digest of the event's content. It distinguishes a duplicate from a conflict.
    payload_digest bigint NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (event_key)
) PARTITION BY HASH (event_key);
CREATE TABLE usage_events (
    business_id text COLLATE "C" NOT NULL,
    event_id text NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    event_name text NOT NULL,
    event_at timestamptz NOT NULL,
    metadata json NOT NULL,
    -- NULL if no meter matched and nothing was charged.
    currency text,
    cost_minor numeric NOT NULL CHECK (cost_minor >= 0 AND cost_minor < 'Infinity'),
    batch_id bigint NOT NULL,
    posted_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (posted_at);
-- Rows of one batch lie together, so a block range index finds them at no cost per row.
CREATE INDEX usage_events_of_batch ON usage_events USING brin (batch_id)
    WITH (pages_per_range = 16);
-- Takes the rows for which no partition was made ahead.
CREATE TABLE usage_events_default PARTITION OF usage_events DEFAULT;

CREATE TABLE refused_events (
    refusal_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL,
    event_key uuid NOT NULL,
    payload_digest bigint NOT NULL,
    event_id text NOT NULL,
    customer_id text NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    -- The event as it was buffered (or the bytes that could not be read, in base64).
    payload json NOT NULL,
    batch_id bigint NOT NULL REFERENCES usage_batches ON DELETE RESTRICT,
    refused_at timestamptz NOT NULL DEFAULT now(),
    replayed_at timestamptz,
    UNIQUE (event_key, payload_digest)
);
CREATE INDEX refused_events_open ON refused_events (business_id, refusal_id)
    WHERE replayed_at IS NULL;

-- How far each shard's stream was read. It accounts for events, not for money.
CREATE TABLE drain_cursors (
    shard integer NOT NULL,
    epoch text NOT NULL,
    last_stream_id text NOT NULL,
    -- Events that the shard had accepted up to the last chunk that was read.
    accepted_count bigint NOT NULL,
    -- Events that were posted, duplicate or refused.
    settled_count bigint NOT NULL,
    -- Accepted events that Redis lost before they were read.
    lost_count bigint NOT NULL DEFAULT 0,
    -- Settled events that a Redis with an older state no longer counts.
    rewound_count bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, epoch),
    CHECK (settled_count = accepted_count - lost_count + rewound_count)
);
"""

RATE_CARD = """
CREATE TABLE meters (
    meter_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    name text NOT NULL,
    event_name text NOT NULL,
    measurement_unit text NOT NULL,
    aggregation_type text NOT NULL CHECK (aggregation_type IN ('count', 'sum')),
    aggregation_key text CHECK ((aggregation_type = 'count') = (aggregation_key IS NULL)),
    description text,
    filter json,
    archived_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX meters_of_business ON meters (business_id, meter_id);
CREATE TABLE prices (
    price_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    meter_id text COLLATE "C" NOT NULL REFERENCES meters ON DELETE RESTRICT,
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    -- Minor units per `units`.
    price_per_unit numeric(17, 12) NOT NULL
        CHECK (price_per_unit >= 0 AND price_per_unit < 'Infinity'),
    units bigint NOT NULL DEFAULT 1 CHECK (units > 0),
    effective_from timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (meter_id, currency, effective_from)
);
CREATE INDEX prices_of_business ON prices (business_id, meter_id);
"""

ALERTS = """
CREATE TABLE low_credit_rules (
    rule_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    -- NULL for the business's default in the currency, which holds for wallets without a rule.
    wallet_id text COLLATE "C" REFERENCES wallets ON DELETE RESTRICT,
    currency text NOT NULL,
    threshold_minor bigint NOT NULL,
    recover_at_minor bigint NOT NULL CHECK (recover_at_minor > threshold_minor),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX low_credit_rules_of_wallet ON low_credit_rules (wallet_id, threshold_minor)
    WHERE wallet_id IS NOT NULL;
CREATE UNIQUE INDEX low_credit_rules_default ON low_credit_rules
    (business_id, currency, threshold_minor) WHERE wallet_id IS NULL;
-- A row exists while a wallet is low by a rule, and is deleted when the wallet recovers.
CREATE TABLE low_credit_states (
    wallet_id text COLLATE "C" NOT NULL REFERENCES wallets ON DELETE RESTRICT,
    rule_id text COLLATE "C" NOT NULL REFERENCES low_credit_rules ON DELETE CASCADE,
    since timestamptz NOT NULL,
    PRIMARY KEY (wallet_id, rule_id)
);
"""

WEBHOOKS = """
CREATE TABLE webhook_endpoints (
    endpoint_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    url text NOT NULL,
    description text,
    -- whsec_…. After a rotation the previous secret signs too, until `previous_secret_until`.
    secret text NOT NULL,
    previous_secret text,
    previous_secret_until timestamptz,
    filter_types text[],
    headers json NOT NULL DEFAULT '{}',
    metadata json NOT NULL DEFAULT '{}',
    disabled_at timestamptz,
    disabled_reason text,
    failures_in_row integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_endpoints_of_business ON webhook_endpoints (business_id, endpoint_id);
-- The outbox: a webhook is written in the transaction of its cause.
CREATE TABLE webhook_events (
    webhook_event_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    type text NOT NULL,
    wallet_id text COLLATE "C" REFERENCES wallets ON DELETE RESTRICT,
    sequence bigint,
    data json NOT NULL,
    occurred_at timestamptz NOT NULL,
    UNIQUE (wallet_id, sequence),
    CHECK ((wallet_id IS NULL) = (sequence IS NULL))
);
CREATE INDEX webhook_events_of_business ON webhook_events (business_id, webhook_event_id);
CREATE TABLE webhook_deliveries (
    webhook_event_id text COLLATE "C" NOT NULL REFERENCES webhook_events ON DELETE RESTRICT,
    endpoint_id text COLLATE "C" NOT NULL REFERENCES webhook_endpoints ON DELETE CASCADE,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'dead')),
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    -- A claim moves it into the future before the attempt: if the worker dies, it is due again.
    due_at timestamptz NOT NULL,
    delivered_at timestamptz,
    PRIMARY KEY (webhook_event_id, endpoint_id)
);
-- By endpoint first: claims take turns between endpoints, so a long queue delays no other one.
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, due_at, webhook_event_id)
    WHERE status = 'pending';
CREATE INDEX webhook_deliveries_dead ON webhook_deliveries (endpoint_id, webhook_event_id)
    WHERE status = 'dead';
CREATE INDEX webhook_deliveries_of_endpoint ON webhook_deliveries (endpoint_id, webhook_event_id);
CREATE TABLE webhook_attempts (
    webhook_event_id text COLLATE "C" NOT NULL,
    endpoint_id text COLLATE "C" NOT NULL,
    attempt integer NOT NULL CHECK (attempt > 0),
    attempted_at timestamptz NOT NULL,
    duration_ms integer NOT NULL CHECK (duration_ms >= 0),
    -- NULL if there was no answer; `error` says why.
    status_code integer,
    error text,
    PRIMARY KEY (webhook_event_id, endpoint_id, attempt),
    FOREIGN KEY (webhook_event_id, endpoint_id) REFERENCES webhook_deliveries ON DELETE CASCADE
);
"""

PURCHASES = """
CREATE TABLE purchases (
    purchase_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    customer_id text COLLATE "C" NOT NULL REFERENCES customers ON DELETE RESTRICT,
    currency text NOT NULL,
    -- The business's own id of the order. An order is paid once.
    order_id text NOT NULL CHECK (order_id <> ''),
    paid_minor bigint NOT NULL CHECK (paid_minor > 0),
    credit_minor bigint NOT NULL CHECK (credit_minor > 0),
    status text NOT NULL DEFAULT 'paid' CHECK (status IN ('paid', 'credited')),
    entry_id text COLLATE "C" REFERENCES ledger_entries (entry_id) ON DELETE RESTRICT,
    paid_at timestamptz NOT NULL,
    credited_at timestamptz,
    UNIQUE (business_id, order_id),
    CHECK ((status = 'credited') = (entry_id IS NOT NULL)),
    CHECK ((status = 'credited') = (credited_at IS NOT NULL))
);
CREATE INDEX purchases_uncredited ON purchases (paid_at) WHERE status = 'paid';
"""


def upgrade() -> None:
    for part in (TENANTS, LEDGER, USAGE, RATE_CARD, ALERTS, WEBHOOKS, PURCHASES):
        op.execute(part)
    for remainder in range(KEY_PARTITIONS):
        op.execute(
            f"CREATE TABLE usage_event_keys_{remainder} PARTITION OF usage_event_keys"
            f" FOR VALUES WITH (MODULUS {KEY_PARTITIONS}, REMAINDER {remainder})"
        )
