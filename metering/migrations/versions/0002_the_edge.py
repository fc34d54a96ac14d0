"""The HTTP edge: API keys, and a wall between tenants that the database itself enforces.

The transactions of the edge take the role `gullak_api` and name their business. Every table shows
them that business's rows only, even if a query forgets the condition. The role owns no table, so
the policies bind it. `FORCE` would bind the owner too. It is left out, because Postgres refuses
`COPY FROM` to a bound role, and the worker is the owner and uses `COPY`.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

API_KEYS = """
CREATE TABLE api_keys (
    key_id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    name text NOT NULL CHECK (name <> ''),
    -- Finds a key, and is shown in lists. Of the rest of a key only the hash is stored.
    prefix text COLLATE "C" NOT NULL UNIQUE,
    secret_hash bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    scopes text[] NOT NULL CHECK (scopes <@ ARRAY['ingest', 'read', 'write'] AND scopes <> '{}'),
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_of_business ON api_keys (business_id, key_id);
-- Finds the business of a key. SECURITY DEFINER, because no policy can know the business yet.
CREATE FUNCTION api_key_of(wanted text)
    RETURNS TABLE (key_id text, business_id text, secret_hash bytea, scopes text[])
    LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT k.key_id, k.business_id, k.secret_hash, k.scopes FROM api_keys k
    WHERE k.prefix = wanted AND k.revoked_at IS NULL
$$;
"""

LISTS = """
CREATE INDEX customers_by_age ON customers (business_id, created_at, customer_id);
-- Nearly all entries are usage. This index finds the others without reading usage.
CREATE INDEX ledger_entries_not_usage ON ledger_entries (wallet_id, version)
    WHERE kind <> 'usage';
"""

# Roles belong to the cluster: another database may have made it, or be making it now.
ROLE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'gullak_api') THEN
        CREATE ROLE gullak_api NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'gullak_api', 'MEMBER') THEN
        EXECUTE format('GRANT gullak_api TO %I', current_user);
    END IF;
END $$;
"""

# The rights of the edge by table. It never changes history, and creates no keys.
GRANTS = {
    "businesses": "SELECT, UPDATE (rate_card_version)",
    "customers": "SELECT, INSERT, UPDATE",
    "wallets": "SELECT, INSERT, UPDATE",
    "ledger_entries": "SELECT, INSERT",
    "usage_events": "SELECT",
    "refused_events": "SELECT, UPDATE (replayed_at)",
    "meters": "SELECT, INSERT, UPDATE",
    "prices": "SELECT, INSERT",
    "low_credit_rules": "SELECT, INSERT, UPDATE, DELETE",
    "webhook_endpoints": "SELECT, INSERT, UPDATE, DELETE",
    "webhook_events": "SELECT, INSERT",
    "purchases": "SELECT",
    "api_keys": "SELECT, UPDATE (last_used_at)",
}
# A row of these belongs to the owner of its parent row: the policy of the parent table decides.
OF_PARENT = {
    "low_credit_states": ("SELECT, INSERT, DELETE", "wallets", "wallet_id"),
    "webhook_deliveries": ("SELECT, INSERT, UPDATE", "webhook_endpoints", "endpoint_id"),
    "webhook_attempts": ("SELECT", "webhook_endpoints", "endpoint_id"),
}
OWN = "business_id = current_setting('gullak.business_id', true)"


def upgrade() -> None:
    for part in (API_KEYS, LISTS, ROLE):
        op.execute(part)
    for table, rights in GRANTS.items():
        _wall(table, rights, OWN)
    for table, (rights, parent, key) in OF_PARENT.items():
        _wall(table, rights, f"EXISTS (SELECT FROM {parent} p WHERE p.{key} = {table}.{key})")
    # The key of an event is a hash that names no tenant.
    op.execute("GRANT SELECT ON usage_event_keys TO gullak_api")
    op.execute("REVOKE ALL ON FUNCTION api_key_of FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION api_key_of TO gullak_api")
    # The check of an entry looks at tables that the edge may not read.
    op.execute("ALTER FUNCTION check_chain() SECURITY DEFINER")
    # The functions run with the owner's rights: a temporary table must not shadow one of ours.
    schema = op.get_bind().exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    for function in ("api_key_of(text)", "check_chain()"):
        op.execute(f"ALTER FUNCTION {function} SET search_path = {schema}, pg_temp")


def _wall(table: str, rights: str, condition: str) -> None:
    op.execute(f"GRANT {rights} ON {table} TO gullak_api")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY own_rows ON {table} TO gullak_api USING ({condition})")
