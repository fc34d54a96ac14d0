"""Webhook endpoints made over HTTP: a repeated request returns the endpoint of the first."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "ALTER TABLE webhook_endpoints ADD idempotency_key text, ADD request_digest bytea,"
        " ADD CHECK ((idempotency_key IS NULL) = (request_digest IS NULL)),"
        " ADD UNIQUE (business_id, idempotency_key)"
    )
