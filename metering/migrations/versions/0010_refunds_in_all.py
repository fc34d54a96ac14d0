"""Totals of refunds, payments that a person accepts, and purchases that are free."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

REVERSALS = """
ALTER TABLE payment_reversals
    -- When the refund was requested. NULL if the provider does not say.
    ADD began_at timestamptz,
    DROP CONSTRAINT payment_reversals_kind_check,
    ADD CHECK (kind IN ('refund', 'refund_total', 'dispute'));
"""

# The name of the check differs between databases, so it is found by its definition.
PAYMENTS = """
ALTER TABLE payments
    -- A person has accepted it for its purchase, though its amount is smaller.
    ADD is_accepted boolean NOT NULL DEFAULT false;
DO $$
DECLARE old record;
BEGIN
    FOR old IN SELECT conname FROM pg_constraint WHERE conrelid = 'purchases'::regclass
        AND contype = 'c' AND pg_get_constraintdef(oid) = 'CHECK ((paid_minor > 0))'
    LOOP
        EXECUTE format('ALTER TABLE purchases DROP CONSTRAINT %I', old.conname);
    END LOOP;
END $$;
-- 0 if a discount covers the whole price. A person has accepted that.
ALTER TABLE purchases ADD CHECK (paid_minor >= 0);
"""


def upgrade() -> None:
    op.execute(REVERSALS)
    op.execute(PAYMENTS)
