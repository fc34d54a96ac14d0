"""Refunds in all, payments that a person accepts, and purchases that nobody had to pay for."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

REVERSALS = """
ALTER TABLE payment_reversals
    -- When a refund was asked for; NULL: nobody says.
    ADD began_at timestamptz,
    DROP CONSTRAINT payment_reversals_kind_check,
    ADD CHECK (kind IN ('refund', 'refund_total', 'dispute'));
"""

# The number in the name of the check depends on how the table came to be.
PAYMENTS = """
ALTER TABLE payments
    -- A person has accepted it as paying for its purchase, though it is of less.
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
-- 0: a discount of all of it, which a person has accepted.
ALTER TABLE purchases ADD CHECK (paid_minor >= 0);
"""


def upgrade() -> None:
    op.execute(REVERSALS)
    op.execute(PAYMENTS)
