"""Usage without a price: the policy of a business, and the kinds that were reported to it."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

POLICY = """
-- Existing businesses keep such usage free, as before; a webhook reports it.
ALTER TABLE businesses ADD on_unmetered text NOT NULL DEFAULT 'keep_free'
    CHECK (on_unmetered IN ('refuse', 'keep_free'));
ALTER TABLE businesses ALTER on_unmetered SET DEFAULT 'refuse';
"""
REPORTED = """
-- A kind of usage without a price, and when it was last reported to the business.
CREATE TABLE unpriced_usage (
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    reason text COLLATE "C" NOT NULL,
    event_name text COLLATE "C" NOT NULL,
    -- The meter without a price. Empty if no meter measures the event.
    meter_id text COLLATE "C" NOT NULL,
    rate_card_version bigint NOT NULL,
    told_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (business_id, reason, event_name, meter_id)
);
"""


def upgrade() -> None:
    op.execute(POLICY)
    op.execute(REPORTED)
