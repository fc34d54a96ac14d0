"""Where the events of a business are: which batches hold some, so that lists need not search.

Usage events get no further index, because every event of every batch would pay for it.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

USAGE_OF_BUSINESSES = """
CREATE TABLE usage_of_businesses (
    business_id text COLLATE "C" NOT NULL,
    batch_id bigint NOT NULL,
    -- When the rows of the batch were written. It decides which partition holds them.
    posted_at timestamptz NOT NULL DEFAULT now(),
    first_event_at timestamptz NOT NULL,
    last_event_at timestamptz NOT NULL,
    -- True if some events charged no wallet: no ledger entry leads to them.
    has_uncharged boolean NOT NULL,
    PRIMARY KEY (business_id, posted_at, batch_id)
);
CREATE INDEX usage_of_businesses_uncharged
    ON usage_of_businesses (business_id, posted_at, batch_id) WHERE has_uncharged;
INSERT INTO usage_of_businesses
    SELECT business_id, batch_id, posted_at, min(event_at), max(event_at), bool_or(currency IS NULL)
    FROM usage_events GROUP BY business_id, batch_id, posted_at;
CREATE INDEX refused_events_by_time ON refused_events (business_id, refused_at, refusal_id)
    WHERE replayed_at IS NULL;
CREATE INDEX refused_events_of_customer
    ON refused_events (business_id, customer_id, refused_at, refusal_id) WHERE replayed_at IS NULL;
"""
WALL = """
GRANT SELECT ON usage_of_businesses TO gullak_api;
ALTER TABLE usage_of_businesses ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON usage_of_businesses TO gullak_api
    USING (business_id = current_setting('gullak.business_id', true));
-- A batch has events of all businesses; its number and time reveal nothing about one of them.
GRANT SELECT (batch_id, created_at) ON usage_batches TO gullak_api;
"""


def upgrade() -> None:
    for part in (USAGE_OF_BUSINESSES, WALL):
        op.execute(part)
