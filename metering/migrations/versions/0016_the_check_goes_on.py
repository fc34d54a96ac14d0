"""The scheduled check of low credit remembers how far it came."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

PLACE = """
CREATE TABLE low_credit_check (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- The last wallet that was checked; empty before the first.
    after text NOT NULL DEFAULT ''
);
INSERT INTO low_credit_check DEFAULT VALUES;
"""


def upgrade() -> None:
    op.execute(PLACE)
