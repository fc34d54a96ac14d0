"""A price can be ended, or withdrawn before it has charged anything."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

PRICES = """
-- When the price ended. It was never in force if this equals `effective_from`.
ALTER TABLE prices ADD ended_at timestamptz CHECK (ended_at >= effective_from);
-- After a price has ended, another may begin at the same time as the ended one.
ALTER TABLE prices DROP CONSTRAINT prices_meter_id_currency_effective_from_key;
CREATE UNIQUE INDEX prices_not_ended ON prices (meter_id, currency, effective_from)
    WHERE ended_at IS NULL;
"""


def upgrade() -> None:
    op.execute(PRICES)
