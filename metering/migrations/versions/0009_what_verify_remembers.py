"""How far the scheduled verification has come, and which faults a person has accepted."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

VERIFY = """
CREATE TABLE verify_walk (
    is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    started_at timestamptz,
    -- Where the walk goes on. NULL while no walk is under way.
    place json,
    -- Faults that the last walk has found so far.
    fault_count bigint NOT NULL DEFAULT 0,
    completed_at timestamptz,
    completed_fault_count bigint NOT NULL DEFAULT 0
);
INSERT INTO verify_walk DEFAULT VALUES;
CREATE TABLE accepted_faults (
    fault_id text COLLATE "C" PRIMARY KEY,
    invariant text NOT NULL,
    detail text NOT NULL,
    reason text NOT NULL CHECK (reason <> ''),
    accepted_at timestamptz NOT NULL DEFAULT now()
);
"""


def upgrade() -> None:
    op.execute(VERIFY)
