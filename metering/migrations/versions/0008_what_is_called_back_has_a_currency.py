"""Currency of refunds and disputes: only in the payment's currency do they call credit back."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # NULL if it is the currency of the payment.
    op.execute("ALTER TABLE payment_reversals ADD currency text CHECK (currency ~ '^[A-Z]{3}$')")
