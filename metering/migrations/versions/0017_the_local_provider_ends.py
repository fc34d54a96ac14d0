"""The provider `local`, a payment simulator of earlier versions, ends.

Its accounts stay and keep their name, because charges, payments and events refer to them. They are
disabled, so that nothing new comes of them, and no other account can have this provider.
"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

LOCAL = """
UPDATE provider_accounts SET disabled_at = now() WHERE provider = 'local' AND disabled_at IS NULL;
ALTER TABLE provider_accounts DROP CONSTRAINT provider_accounts_provider_check,
    ADD CONSTRAINT provider_accounts_provider_check CHECK (provider IN ('dodo', 'stripe')
        OR (provider = 'local' AND disabled_at IS NOT NULL));
"""


def upgrade() -> None:
    op.execute(LOCAL)
