"""A refused event ends: it was replayed, mended, or dismissed."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

ENDS = """
COMMENT ON COLUMN refused_events.replayed_at IS 'When it stopped waiting.';
-- NULL with `replayed_at` set: it was replayed.
ALTER TABLE refused_events ADD resolution text CHECK (resolution IN ('mended', 'dismissed')),
    ADD resolution_note text;
CREATE INDEX refused_events_over ON refused_events (business_id, refused_at, refusal_id)
    WHERE replayed_at IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(ENDS)
