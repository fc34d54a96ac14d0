"""Credit in lots: when each was bought, when it expires, and which debit consumed which lot.

Debits consume lots in order, so a lot covers stretches of a wallet's debits. A stretch ends when
another lot becomes the current one. The table keeps stretches, not a row per debit and lot. So the
cost of a batch does not grow with the number of lots, and views still show every allocation.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

LOTS = """
CREATE TABLE credit_lots (
    lot_id text COLLATE "C" NOT NULL,
    wallet_id text COLLATE "C" NOT NULL REFERENCES wallets ON DELETE RESTRICT,
    business_id text COLLATE "C" NOT NULL,
    -- The credit that made it. NULL for the balance of a wallet from before there were lots.
    entry_id text COLLATE "C" REFERENCES ledger_entries (entry_id) ON DELETE RESTRICT,
    source text NOT NULL CHECK (source IN ('paid', 'promotional', 'refund', 'manual')),
    -- Lots of a smaller priority are consumed first.
    priority smallint NOT NULL CHECK (priority BETWEEN 0 AND 100),
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    -- The amount left. For the current lot: the amount left when it became the current one.
    remaining_minor bigint NOT NULL CHECK (remaining_minor BETWEEN 0 AND amount_minor),
    -- The price that was paid for it, in minor units of its currency. NULL if not known.
    cost_basis_minor bigint CHECK (cost_basis_minor >= 0),
    expires_at timestamptz,
    -- A lot is frozen while its payment is in dispute: debits do not consume it.
    frozen_at timestamptz,
    created_at timestamptz NOT NULL,
    -- By wallet first. No other index covers all lots, because the end of a lot updates each.
    PRIMARY KEY (wallet_id, lot_id)
);
CREATE INDEX credit_lots_left ON credit_lots (wallet_id) WHERE remaining_minor > 0;
CREATE INDEX credit_lots_expiring ON credit_lots (expires_at)
    WHERE remaining_minor > 0 AND expires_at IS NOT NULL AND frozen_at IS NULL;
CREATE TRIGGER credit_lots_stay BEFORE DELETE OR TRUNCATE ON credit_lots
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A stretch: a lot has paid for the debits of its wallet from one position to another. A position
-- counts the minor units that the wallet was ever debited. The row of the wallet holds its last
-- stretch. No foreign keys here and from the wallet to its lot: wallets and lots are never deleted,
-- and the keys made a drain of many wallets a fifth slower.
CREATE TABLE lot_stretches (
    wallet_id text COLLATE "C" NOT NULL,
    from_minor bigint NOT NULL CHECK (from_minor >= 0),
    to_minor bigint NOT NULL,
    lot_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (wallet_id, from_minor),
    CHECK (to_minor > from_minor)
);
CREATE TRIGGER lot_stretches_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON lot_stretches
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Amounts that an expiry, a reversal or a refund took from a chosen lot (below zero) or gave back
-- to it. The order of lots does not apply to them.
CREATE TABLE lot_moves (
    entry_id text COLLATE "C" NOT NULL REFERENCES ledger_entries (entry_id) ON DELETE RESTRICT,
    wallet_id text COLLATE "C" NOT NULL,
    lot_id text COLLATE "C" NOT NULL,
    moved_minor bigint NOT NULL CHECK (moved_minor <> 0),
    PRIMARY KEY (entry_id, lot_id),
    FOREIGN KEY (wallet_id, lot_id) REFERENCES credit_lots ON DELETE RESTRICT
);
CREATE INDEX lot_moves_of_lot ON lot_moves (wallet_id, lot_id);
CREATE TRIGGER lot_moves_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON lot_moves
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

WALLETS = """
ALTER TABLE wallets
    -- The position of the debits, and of their payment by lots. The difference is debt.
    ADD debited_minor bigint NOT NULL DEFAULT 0,
    ADD covered_minor bigint NOT NULL DEFAULT 0,
    -- The current lot, the amount left of it, the position where it began, and when it expires.
    ADD lot_id text COLLATE "C",
    ADD lot_left_minor bigint NOT NULL DEFAULT 0 CHECK (lot_left_minor >= 0),
    ADD lot_from_minor bigint NOT NULL DEFAULT 0,
    ADD lot_until timestamptz,
    -- The part of the balance that is in frozen lots.
    ADD frozen_minor bigint NOT NULL DEFAULT 0 CHECK (frozen_minor >= 0),
    ADD CHECK (covered_minor BETWEEN 0 AND debited_minor),
    ADD CHECK (lot_from_minor BETWEEN 0 AND covered_minor),
    -- There is no debt while there is a current lot.
    ADD CHECK (lot_id IS NULL OR covered_minor = debited_minor),
    ADD CHECK (lot_id IS NOT NULL OR (lot_left_minor = 0 AND lot_until IS NULL));
"""

# balance = lots - debt. It holds only after existing wallets have their opening lots.
BALANCES = """
ALTER TABLE wallets ADD CHECK
    (balance_minor + debited_minor - covered_minor >= lot_left_minor + frozen_minor);
"""

ENTRIES = """
-- The position at which a debit begins. NULL for a credit, and for entries from before there were
-- lots. A debit covers its amount from there, less the amount that it took from chosen lots.
ALTER TABLE ledger_entries ADD debited_before_minor bigint CHECK (debited_before_minor >= 0),
    ADD CHECK (NOT is_credit OR debited_before_minor IS NULL);
DO $$
DECLARE old text;
BEGIN
    SELECT conname INTO STRICT old FROM pg_constraint
    WHERE conrelid = 'ledger_entries'::regclass AND contype = 'c'
        AND pg_get_constraintdef(oid) LIKE '%kind = ANY%';
    EXECUTE format('ALTER TABLE ledger_entries DROP CONSTRAINT %I', old);
END $$;
ALTER TABLE ledger_entries ADD CONSTRAINT ledger_entries_kinds CHECK
    (kind IN ('usage', 'manual', 'purchase', 'correction', 'expiry', 'reversal', 'refund',
        'checkout'));
"""

OPENING = """
INSERT INTO credit_lots (lot_id, wallet_id, business_id, source, priority, amount_minor,
        remaining_minor, created_at)
    SELECT 'lot_' || substr(wallet_id, 5), wallet_id, business_id, 'manual', 50, balance_minor,
        balance_minor, updated_at
    FROM wallets WHERE balance_minor > 0;
UPDATE wallets SET lot_id = 'lot_' || substr(wallet_id, 5), lot_left_minor = balance_minor
    WHERE balance_minor > 0;
UPDATE wallets SET debited_minor = -balance_minor WHERE balance_minor < 0;
"""

ALLOCATIONS = """
-- All stretches, with the last one of each wallet.
CREATE VIEW lot_coverage WITH (security_invoker = true) AS
    SELECT wallet_id, from_minor, to_minor, lot_id FROM lot_stretches
    UNION ALL SELECT wallet_id, lot_from_minor, covered_minor, lot_id FROM wallets
    WHERE lot_id IS NOT NULL AND covered_minor > lot_from_minor;
-- From which position to which each debit goes.
CREATE VIEW debit_places WITH (security_invoker = true) AS
    SELECT e.entry_id, e.wallet_id, e.version, e.debited_before_minor AS from_minor,
        e.debited_before_minor + e.amount_minor + coalesce((SELECT sum(m.moved_minor)
            FROM lot_moves m WHERE m.entry_id = e.entry_id), 0)::bigint AS to_minor
    FROM ledger_entries e WHERE e.debited_before_minor IS NOT NULL;
-- Which lot paid how much of which debit, from which position; and the amounts of `lot_moves`.
CREATE VIEW lot_allocations WITH (security_invoker = true) AS
    SELECT p.entry_id, p.wallet_id, s.lot_id, greatest(p.from_minor, s.from_minor) AS at_minor,
        least(p.to_minor, s.to_minor) - greatest(p.from_minor, s.from_minor) AS amount_minor
    FROM debit_places p JOIN lot_coverage s ON s.wallet_id = p.wallet_id
        AND s.from_minor < p.to_minor AND s.to_minor > p.from_minor
    WHERE p.to_minor > p.from_minor
    UNION ALL SELECT entry_id, wallet_id, lot_id, NULL, abs(moved_minor) FROM lot_moves;
"""

WALL = """
GRANT SELECT, INSERT, UPDATE ON credit_lots TO gullak_api;
GRANT SELECT, INSERT ON lot_stretches, lot_moves TO gullak_api;
GRANT SELECT ON lot_coverage, debit_places, lot_allocations TO gullak_api;
ALTER TABLE credit_lots ENABLE ROW LEVEL SECURITY;
ALTER TABLE lot_stretches ENABLE ROW LEVEL SECURITY;
ALTER TABLE lot_moves ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON credit_lots TO gullak_api
    USING (business_id = current_setting('gullak.business_id', true));
CREATE POLICY own_rows ON lot_stretches TO gullak_api
    USING (EXISTS (SELECT FROM wallets w WHERE w.wallet_id = lot_stretches.wallet_id));
CREATE POLICY own_rows ON lot_moves TO gullak_api
    USING (EXISTS (SELECT FROM wallets w WHERE w.wallet_id = lot_moves.wallet_id));
"""


def upgrade() -> None:
    for part in (LOTS, WALLETS, ENTRIES, OPENING, BALANCES, ALLOCATIONS, WALL):
        op.execute(part)
