"""The wall between tenants: the role of the HTTP edge, its rights, the policies that bind it.

Every migration run builds it, not only the revision that made a table. A role belongs to the
cluster. A dump that is restored into a new cluster therefore lacks the role and everything that
names it. A new table needs a line here, and nothing in its migration.
"""

from typing import Final

from sqlalchemy import Connection

# Another database of the cluster may have made the role, or be making it now.
_ROLE: Final = """
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

# The rights of the HTTP edge by table. It never changes history, and creates no keys.
RIGHTS: Final = {
    "alembic_version": "SELECT",
    "api_keys": "SELECT, UPDATE (last_used_at)",
    "businesses": "SELECT, UPDATE (rate_card_version, reversal_policy, on_unmetered)",
    "charges": "SELECT, INSERT, UPDATE",
    "checkouts": "SELECT, INSERT, UPDATE",
    "credit_lots": "SELECT, INSERT, UPDATE",
    "credit_packages": "SELECT, INSERT, UPDATE (archived_at)",
    "customers": "SELECT, INSERT, UPDATE",
    "debit_places": "SELECT",
    "ledger_entries": "SELECT, INSERT",
    "lot_allocations": "SELECT",
    "lot_coverage": "SELECT",
    "lot_moves": "SELECT, INSERT",
    "lot_stretches": "SELECT, INSERT",
    "low_credit_rules": "SELECT, INSERT, UPDATE, DELETE",
    "low_credit_states": "SELECT, INSERT, DELETE",
    "meters": "SELECT, INSERT, UPDATE",
    "payment_reversals": "SELECT, INSERT, UPDATE",
    "payments": "SELECT, INSERT, UPDATE",
    "prices": "SELECT, INSERT, UPDATE (ended_at)",
    "provider_accounts": "SELECT",
    "provider_events": "SELECT, INSERT, UPDATE",
    "purchases": "SELECT, INSERT, UPDATE",
    "refused_events": "SELECT, UPDATE (replayed_at, resolution, resolution_note, payload)",
    "top_up_rules": "SELECT, INSERT, UPDATE, DELETE",
    "unpriced_usage": "SELECT",
    # A batch has events of all businesses; its number and time reveal nothing about one of them.
    "usage_batches": "SELECT (batch_id, created_at)",
    # The key of an event is a hash that names no tenant.
    "usage_event_keys": "SELECT",
    "usage_events": "SELECT",
    "usage_of_businesses": "SELECT",
    "wallets": "SELECT, INSERT, UPDATE",
    "webhook_attempts": "SELECT",
    "webhook_deliveries": "SELECT, INSERT, UPDATE",
    "webhook_endpoints": "SELECT, INSERT, UPDATE, DELETE",
    "webhook_events": "SELECT, INSERT",
}
# A row of these belongs to the owner of its parent row: the policy of the parent table decides.
_OF_PARENT: Final = {
    "lot_moves": ("wallets", "wallet_id"),
    "lot_stretches": ("wallets", "wallet_id"),
    "low_credit_states": ("wallets", "wallet_id"),
    "webhook_attempts": ("webhook_endpoints", "endpoint_id"),
    "webhook_deliveries": ("webhook_endpoints", "endpoint_id"),
}
# Tables that name no tenant, and views, which look through the policies of their tables.
_WITHOUT_POLICY: Final = {
    "alembic_version",
    "debit_places",
    "lot_allocations",
    "lot_coverage",
    "usage_batches",
    "usage_event_keys",
}
# Functions that only the edge may call, past the wall.
_FUNCTIONS: Final = ("api_key_of(text)", "provider_account_of(text, text)")

_WALLED: Final = """
SELECT c.relname FROM pg_class c JOIN pg_policy p ON p.polrelid = c.oid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relrowsecurity
    AND p.polname = 'own_rows' AND p.polroles = ARRAY['gullak_api'::regrole::oid]
"""


def make_role(conn: Connection) -> None:
    """Make the role of the edge, if the cluster lacks it; the present user may take it."""
    conn.exec_driver_sql(_ROLE, execution_options={"no_parameters": True})


def raise_wall(conn: Connection) -> None:
    """Give the role its rights, and each table the policy that it lacks."""
    for table, rights in RIGHTS.items():
        conn.exec_driver_sql(f"GRANT {rights} ON {table} TO gullak_api")
    for function in _FUNCTIONS:
        conn.exec_driver_sql(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        conn.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {function} TO gullak_api")
    # A policy locks its table against everybody, so it is made only where it is missing.
    walled = {name for (name,) in conn.exec_driver_sql(_WALLED)}
    for table in sorted(RIGHTS.keys() - _WITHOUT_POLICY - walled):
        conn.exec_driver_sql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        conn.exec_driver_sql(f"DROP POLICY IF EXISTS own_rows ON {table}")
        conn.exec_driver_sql(
            f"CREATE POLICY own_rows ON {table} TO gullak_api USING ({_condition(table)})"
        )


def _condition(table: str) -> str:
    if table not in _OF_PARENT:
        return "business_id = current_setting('gullak.business_id', true)"
    parent, key = _OF_PARENT[table]
    return f"EXISTS (SELECT FROM {parent} p WHERE p.{key} = {table}.{key})"
