"""What refunds and disputes are in: only what is in the currency of its payment is called back."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # NULL: that of the payment.
    op.execute("ALTER TABLE payment_reversals ADD currency text CHECK (currency ~ '^[A-Z]{3}$')")
