"""Money in, and back out: packages, purchases, facts of providers, charges, top-ups.

The facts of a payment are stored by the provider's own ids, in any order. The state of a purchase
follows from its facts: settled, disputed, reversed. A repeated fact changes nothing. A refund that
arrives before its payment waits for it.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

PACKAGES = """
CREATE TABLE credit_packages (
    package_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    name text NOT NULL CHECK (name <> ''),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    -- The price and the credit. They differ by a bonus or a tax.
    price_minor bigint NOT NULL CHECK (price_minor > 0),
    credit_minor bigint NOT NULL CHECK (credit_minor > 0),
    -- How long its credit is valid. NULL if it does not expire.
    valid_days integer CHECK (valid_days > 0),
    priority smallint NOT NULL DEFAULT 50 CHECK (priority BETWEEN 0 AND 100),
    archived_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX credit_packages_of_business ON credit_packages (business_id, package_id);
"""

PURCHASES = """
ALTER TABLE purchases RENAME COLUMN paid_minor TO price_minor;
ALTER TABLE purchases RENAME COLUMN credited_at TO settled_at;
DO $$
DECLARE old record;
BEGIN
    FOR old IN SELECT conname FROM pg_constraint WHERE conrelid = 'purchases'::regclass
        AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%status%'
    LOOP
        EXECUTE format('ALTER TABLE purchases DROP CONSTRAINT %I', old.conname);
    END LOOP;
END $$;
DROP INDEX purchases_uncredited;
ALTER TABLE purchases
    ALTER status SET DEFAULT 'pending',
    ALTER paid_at DROP NOT NULL,
    ADD origin text NOT NULL DEFAULT 'order' CHECK (origin IN ('order', 'top_up', 'checkout')),
    ADD package_id text COLLATE "C" REFERENCES credit_packages ON DELETE RESTRICT,
    ADD valid_days integer CHECK (valid_days > 0),
    ADD priority smallint NOT NULL DEFAULT 50 CHECK (priority BETWEEN 0 AND 100),
    -- The payment that settled it, and the amount of that payment.
    ADD provider text,
    ADD payment_id text,
    ADD paid_minor bigint CHECK (paid_minor > 0),
    -- The credit that refunds and lost disputes call back; and the part of it that was not taken,
    -- because it had expired, or was spent and the policy makes no debt.
    ADD refunded_minor bigint NOT NULL DEFAULT 0 CHECK (refunded_minor >= 0),
    ADD lost_minor bigint NOT NULL DEFAULT 0,
    ADD shortfall_minor bigint NOT NULL DEFAULT 0 CHECK (shortfall_minor >= 0),
    -- Why it failed, or why a person has to look at it.
    ADD failure text,
    -- Set while there are facts that are not settled yet.
    ADD is_due boolean NOT NULL DEFAULT false,
    ADD created_at timestamptz NOT NULL DEFAULT now(),
    ADD updated_at timestamptz NOT NULL DEFAULT now();
UPDATE purchases SET status = CASE status WHEN 'credited' THEN 'settled' ELSE 'pending' END,
    is_due = status = 'paid', provider = CASE WHEN status = 'credited' THEN 'shop' END,
    payment_id = CASE WHEN status = 'credited' THEN order_id END,
    paid_minor = CASE WHEN status = 'credited' THEN price_minor END, created_at = paid_at,
    paid_at = CASE WHEN status = 'credited' THEN paid_at END;
ALTER TABLE purchases
    ADD CONSTRAINT purchases_statuses CHECK (status IN
        ('pending', 'failed', 'settled', 'disputed', 'partially_reversed', 'reversed')),
    ADD CHECK ((entry_id IS NOT NULL) = (status NOT IN ('pending', 'failed'))),
    ADD CHECK ((entry_id IS NOT NULL) = (settled_at IS NOT NULL)),
    ADD CHECK ((entry_id IS NOT NULL) = (paid_minor IS NOT NULL)),
    ADD CHECK ((entry_id IS NOT NULL) = (payment_id IS NOT NULL)),
    ADD CHECK (refunded_minor + lost_minor BETWEEN 0 AND credit_minor),
    ADD CHECK (shortfall_minor <= refunded_minor + lost_minor);
CREATE INDEX purchases_due ON purchases (updated_at) WHERE is_due;
CREATE INDEX purchases_of_business ON purchases (business_id, purchase_id);
CREATE INDEX purchases_of_customer ON purchases (customer_id, purchase_id);
-- One top-up of a wallet at a time.
CREATE UNIQUE INDEX purchases_topping_up ON purchases (customer_id, currency)
    WHERE origin = 'top_up' AND status = 'pending';
CREATE INDEX ledger_entries_reversing ON ledger_entries (reference)
    WHERE kind IN ('reversal', 'refund', 'checkout');
ALTER TABLE businesses ADD reversal_policy text NOT NULL DEFAULT 'debt'
    CHECK (reversal_policy IN ('debt', 'stop_at_zero'));
"""

FACTS = """
-- A payment by the newest fact of the provider. A final status never changes back.
CREATE TABLE payments (
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    provider text NOT NULL,
    payment_id text NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'succeeded', 'failed')),
    amount_minor bigint NOT NULL CHECK (amount_minor >= 0),
    currency text NOT NULL,
    -- A payment is for a purchase or for a checkout. Both are NULL until that is known.
    purchase_id text COLLATE "C" REFERENCES purchases ON DELETE RESTRICT,
    checkout_id text COLLATE "C",
    failure text,
    -- Why it is parked.
    parked_reason text,
    occurred_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (business_id, provider, payment_id),
    CHECK (purchase_id IS NULL OR checkout_id IS NULL)
);
CREATE INDEX payments_of_purchase ON payments (purchase_id) WHERE purchase_id IS NOT NULL;
CREATE INDEX payments_of_checkout ON payments (checkout_id) WHERE checkout_id IS NOT NULL;
CREATE INDEX payments_parked ON payments (business_id, created_at) WHERE parked_reason IS NOT NULL;
-- Refunds and disputes, also of payments that are not known yet.
CREATE TABLE payment_reversals (
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    provider text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('refund', 'dispute')),
    reversal_id text NOT NULL,
    payment_id text NOT NULL,
    status text NOT NULL
        CHECK (status IN ('pending', 'succeeded', 'failed', 'open', 'won', 'lost')),
    -- The part of the payment; NULL for all of it.
    amount_minor bigint CHECK (amount_minor > 0),
    occurred_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (business_id, provider, kind, reversal_id),
    CHECK ((kind = 'dispute') = (status IN ('open', 'won', 'lost')))
);
CREATE INDEX payment_reversals_of_payment
    ON payment_reversals (business_id, provider, payment_id);
INSERT INTO payments (business_id, provider, payment_id, status, amount_minor, currency,
        purchase_id, occurred_at)
    SELECT business_id, 'shop', order_id, 'succeeded', price_minor, currency, purchase_id,
        coalesce(paid_at, created_at) FROM purchases;
"""

PROVIDERS = """
CREATE TABLE provider_accounts (
    account_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    provider text NOT NULL CHECK (provider IN ('dodo', 'stripe', 'local')),
    name text NOT NULL CHECK (name <> ''),
    -- Secrets for its webhooks and for its API. NULL if webhooks or the API are not used.
    webhook_secret text,
    api_key text,
    -- Address of its API, if it is not the default of the vendor's SDK.
    base_url text,
    -- The product of a hosted checkout. Dodo requires one.
    product_id text,
    disabled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX provider_accounts_of_business ON provider_accounts (business_id, account_id);
-- The inbox: verified webhooks of providers as received. A task processes them.
CREATE TABLE provider_events (
    event_number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    account_id text COLLATE "C" NOT NULL REFERENCES provider_accounts ON DELETE RESTRICT,
    provider text NOT NULL,
    -- The provider's own id. It identifies repeated webhooks.
    provider_event_id text NOT NULL,
    body bytea NOT NULL,
    status text NOT NULL DEFAULT 'received'
        CHECK (status IN ('received', 'applied', 'parked', 'ignored', 'failed')),
    type text,
    payment_id text,
    reason text,
    attempts integer NOT NULL DEFAULT 0,
    received_at timestamptz NOT NULL DEFAULT now(),
    processed_at timestamptz,
    UNIQUE (account_id, provider_event_id)
);
CREATE INDEX provider_events_waiting ON provider_events (event_number) WHERE status = 'received';
CREATE INDEX provider_events_of_business ON provider_events (business_id, event_number);
CREATE INDEX provider_events_of_payment ON provider_events (business_id, payment_id);
-- Events that wait for a person: few of all events.
CREATE INDEX provider_events_open ON provider_events (business_id, event_number)
    WHERE status IN ('parked', 'failed');
-- Finds the account of a webhook. SECURITY DEFINER, because no policy can know the business yet.
CREATE FUNCTION provider_account_of(wanted_provider text, wanted_account text)
    RETURNS TABLE (account_id text, business_id text, webhook_secret text)
    LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT a.account_id, a.business_id, a.webhook_secret FROM provider_accounts a
    WHERE a.provider = wanted_provider AND a.disabled_at IS NULL
        AND a.webhook_secret IS NOT NULL
        AND (wanted_account IS NULL OR a.account_id = wanted_account)
    LIMIT 2
$$;
"""

CHARGES = """
CREATE TABLE checkouts (
    checkout_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    customer_id text COLLATE "C" NOT NULL REFERENCES customers ON DELETE RESTRICT,
    currency text NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    -- The part that was taken from the wallet at the start, and the part to pay.
    credit_minor bigint NOT NULL CHECK (credit_minor >= 0),
    payment_minor bigint NOT NULL CHECK (payment_minor >= 0),
    status text NOT NULL CHECK (status IN ('pending', 'completed', 'failed')),
    idempotency_key text NOT NULL,
    request_digest bytea NOT NULL,
    -- The debit that reserves the credit, and the credit that released it.
    debit_entry_id text COLLATE "C" REFERENCES ledger_entries (entry_id) ON DELETE RESTRICT,
    release_entry_id text COLLATE "C" REFERENCES ledger_entries (entry_id) ON DELETE RESTRICT,
    failure text,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    UNIQUE (business_id, idempotency_key),
    CHECK (amount_minor = credit_minor + payment_minor),
    CHECK ((credit_minor > 0) = (debit_entry_id IS NOT NULL)),
    CHECK ((status = 'failed' AND credit_minor > 0) = (release_entry_id IS NOT NULL)),
    CHECK ((status = 'pending') = (ended_at IS NULL))
);
CREATE INDEX checkouts_of_customer ON checkouts (customer_id, checkout_id);
CREATE INDEX checkouts_pending ON checkouts (expires_at) WHERE status = 'pending';
ALTER TABLE payments ADD FOREIGN KEY (checkout_id) REFERENCES checkouts ON DELETE RESTRICT;
-- A charge is stored before the provider is called. Its id is the idempotency key at the provider.
CREATE TABLE charges (
    charge_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    account_id text COLLATE "C" NOT NULL REFERENCES provider_accounts ON DELETE RESTRICT,
    customer_id text COLLATE "C" NOT NULL REFERENCES customers ON DELETE RESTRICT,
    purchase_id text COLLATE "C" UNIQUE REFERENCES purchases ON DELETE RESTRICT,
    checkout_id text COLLATE "C" UNIQUE REFERENCES checkouts ON DELETE RESTRICT,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    currency text NOT NULL,
    -- The saved payment method. NULL if the customer pays on a page of the provider.
    payment_method text,
    return_url text,
    status text NOT NULL DEFAULT 'new'
        CHECK (status IN ('new', 'pending', 'succeeded', 'failed')),
    payment_id text,
    -- The page where the customer pays.
    url text,
    failure text,
    attempts integer NOT NULL DEFAULT 0,
    -- An attempt moves it into the future first: if the worker dies, the charge is due again.
    due_at timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((purchase_id IS NULL) <> (checkout_id IS NULL))
);
CREATE INDEX charges_of_business ON charges (business_id, charge_id);
-- Finds the charge of a payment that does not carry the id of its charge.
CREATE INDEX charges_of_payment ON charges (payment_id);
CREATE INDEX charges_due ON charges (due_at) WHERE status IN ('new', 'pending');
CREATE TABLE top_up_rules (
    wallet_id text COLLATE "C" PRIMARY KEY REFERENCES wallets ON DELETE RESTRICT,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    -- A top-up starts when the credit is at or below it.
    threshold_minor bigint NOT NULL,
    package_id text COLLATE "C" NOT NULL REFERENCES credit_packages ON DELETE RESTRICT,
    account_id text COLLATE "C" NOT NULL REFERENCES provider_accounts ON DELETE RESTRICT,
    payment_method text NOT NULL CHECK (payment_method <> ''),
    -- The most that is charged in a day and in a calendar month, UTC.
    day_cap_minor bigint NOT NULL CHECK (day_cap_minor > 0),
    month_cap_minor bigint NOT NULL CHECK (month_cap_minor >= day_cap_minor),
    -- Declines in a row; at `declines_max` the rule is disabled.
    declines integer NOT NULL DEFAULT 0 CHECK (declines >= 0),
    declines_max integer NOT NULL CHECK (declines_max > 0),
    -- Since when the wallet is low. No charge starts before `retry_at`.
    low_since timestamptz,
    retry_at timestamptz,
    disabled_at timestamptz,
    disabled_reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX top_up_rules_of_business ON top_up_rules (business_id, wallet_id);
CREATE INDEX top_up_rules_low ON top_up_rules (low_since)
    WHERE low_since IS NOT NULL AND disabled_at IS NULL;
"""

EXPIRY = """
-- Which lots were announced before they expire, and how many days ahead. Each is announced once.
CREATE TABLE lot_expiry_notices (
    wallet_id text COLLATE "C" NOT NULL,
    lot_id text COLLATE "C" NOT NULL,
    days_ahead integer NOT NULL CHECK (days_ahead > 0),
    told_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (wallet_id, lot_id, days_ahead),
    FOREIGN KEY (wallet_id, lot_id) REFERENCES credit_lots ON DELETE RESTRICT
);
"""

GRANTS = {
    "credit_packages": "SELECT, INSERT, UPDATE (archived_at)",
    "purchases": "INSERT, UPDATE",
    "payments": "SELECT, INSERT, UPDATE",
    "payment_reversals": "SELECT, INSERT, UPDATE",
    "provider_accounts": "SELECT",
    "provider_events": "SELECT, INSERT, UPDATE",
    "checkouts": "SELECT, INSERT, UPDATE",
    "charges": "SELECT, INSERT, UPDATE",
    "top_up_rules": "SELECT, INSERT, UPDATE, DELETE",
}
WALLED = GRANTS.keys() - {"purchases"}  # `purchases` has its policy since revision 0002
OWN = "business_id = current_setting('gullak.business_id', true)"


def upgrade() -> None:
    for part in (PACKAGES, PURCHASES, FACTS, PROVIDERS, CHARGES, EXPIRY):
        op.execute(part)
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {table} TO gullak_api")
    for table in sorted(WALLED):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY own_rows ON {table} TO gullak_api USING ({OWN})")
    op.execute("GRANT UPDATE (reversal_policy) ON businesses TO gullak_api")
    op.execute("REVOKE ALL ON FUNCTION provider_account_of FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION provider_account_of TO gullak_api")
    schema = op.get_bind().exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    op.execute(
        f"ALTER FUNCTION provider_account_of(text, text) SET search_path = {schema}, pg_temp"
    )
