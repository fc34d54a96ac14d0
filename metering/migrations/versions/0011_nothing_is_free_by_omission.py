"""Usage that nothing prices: what a business wants done with it, and which kinds it was told of."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

POLICY = """
-- An upgrade refuses nothing that was free before it; the webhook tells of it.
ALTER TABLE businesses ADD on_unmetered text NOT NULL DEFAULT 'keep_free'
    CHECK (on_unmetered IN ('refuse', 'keep_free'));
ALTER TABLE businesses ALTER on_unmetered SET DEFAULT 'refuse';
"""
TOLD = """
-- A kind of usage that nothing prices, and when its business was last told.
CREATE TABLE unpriced_usage (
    business_id text COLLATE "C" NOT NULL REFERENCES businesses ON DELETE RESTRICT,
    reason text COLLATE "C" NOT NULL,
    event_name text COLLATE "C" NOT NULL,
    -- The meter without a price; empty: no meter measures the event.
    meter_id text COLLATE "C" NOT NULL,
    rate_card_version bigint NOT NULL,
    told_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (business_id, reason, event_name, meter_id)
);
"""


def upgrade() -> None:
    op.execute(POLICY)
    op.execute(TOLD)
