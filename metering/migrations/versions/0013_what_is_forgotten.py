"""For the clean-up: the number of deleted alerts of a wallet, and indexes to the oldest rows."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

PRUNED = """
CREATE TABLE pruned_alerts (
    wallet_id text COLLATE "C" PRIMARY KEY REFERENCES wallets ON DELETE RESTRICT,
    -- Numbered webhooks of this wallet that were deleted after their retention.
    alert_count bigint NOT NULL CHECK (alert_count > 0)
);
CREATE INDEX provider_events_with_body ON provider_events (event_number)
    WHERE body <> '' AND status IN ('applied', 'ignored');
CREATE INDEX refused_events_replayed ON refused_events (refusal_id) WHERE replayed_at IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(PRUNED)
