"""Views for finance with a comment on every column, and comments on two misleading columns.

They are in a schema of their own. Only their owner may read them: grant `USAGE` on the schema and
`SELECT` on its views to those who need them. They show all businesses.
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

WALLETS = """
CREATE VIEW {reports}.wallets AS
    SELECT w.business_id, w.customer_id, w.wallet_id, w.currency, w.balance_minor, w.frozen_minor,
        w.debited_minor - w.covered_minor AS debt_minor, w.remainder, w.version AS entry_count,
        w.updated_at
    FROM {ours}.wallets w;
COMMENT ON VIEW {reports}.wallets IS 'One row per customer and currency: what is held now.';
"""
LOTS = """
CREATE VIEW {reports}.lots AS
    SELECT l.business_id, w.customer_id, l.wallet_id, w.currency, l.lot_id, l.source, l.priority,
        l.amount_minor, CASE WHEN l.lot_id = w.lot_id THEN w.lot_left_minor
            ELSE l.remaining_minor END AS left_minor,
        l.cost_basis_minor, l.expires_at, l.frozen_at, l.entry_id, l.created_at
    FROM {ours}.credit_lots l JOIN {ours}.wallets w USING (wallet_id);
COMMENT ON VIEW {reports}.lots IS
    'One row per lot of credit. Of a wallet: sum(left_minor) - debt_minor = balance_minor.';
"""
ENTRIES = """
CREATE VIEW {reports}.entries AS
    SELECT business_id, customer_id, wallet_id, currency, entry_id, version, kind, event_type,
        CASE WHEN is_credit THEN amount_minor ELSE -amount_minor END AS change_minor,
        after_minor AS balance_minor, exact_cost, event_count, reason, reference, created_at
    FROM {ours}.ledger_entries;
COMMENT ON VIEW {reports}.entries IS
    'One row per ledger entry. Of a wallet: sum(change_minor) = balance_minor.';
"""
COLUMNS = {
    "wallets": {
        "balance_minor": "Minor units (cents, paise); below zero is debt.",
        "frozen_minor": "Part of the balance in lots that are frozen by a dispute.",
        "debt_minor": "Debits that no lot has paid yet.",
        "remainder": "Part of past costs below a minor unit: taken with the next debit.",
        "entry_count": "Entries of the wallet.",
    },
    "lots": {
        "source": "paid, promotional, refund or manual.",
        "amount_minor": "What it was worth when it was made.",
        "left_minor": "What is left of it now; of the lot that is being burned, too.",
        "cost_basis_minor": "What was paid for it; NULL: nobody said.",
        "expires_at": "When what is left ends; NULL: never.",
        "frozen_at": "Since when it cannot be spent; NULL: it can.",
        "entry_id": "The entry that made it; NULL: it is from before there were lots.",
    },
    "entries": {
        "version": "1, 2, 3 ... per wallet, without gaps.",
        "change_minor": "Above zero: a credit; below: a debit.",
        "balance_minor": "Of the wallet after this entry.",
        "exact_cost": "Of usage: what its events cost, with decimals of a minor unit.",
        "event_count": "Of usage: how many events it is for.",
        "reference": "What it follows from: a purchase, a checkout, the entry it reverses.",
    },
}
MISLEADING = """
COMMENT ON COLUMN credit_lots.remaining_minor IS
    'Not of the lot that is being burned: what is left of that is wallets.lot_left_minor. The view '
    'gullak_reports.lots says what is left of each.';
COMMENT ON COLUMN wallets.lot_left_minor IS 'What is left of the lot that is being burned, lot_id.';
"""


def upgrade() -> None:
    ours = op.get_bind().exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    op.execute("CREATE SCHEMA gullak_reports")
    for view in (WALLETS, LOTS, ENTRIES):
        op.execute(view.format(reports="gullak_reports", ours=ours))
    for view, columns in COLUMNS.items():
        for column, comment in columns.items():
            op.execute(f"COMMENT ON COLUMN gullak_reports.{view}.{column} IS '{comment}'")
    op.execute(MISLEADING)
