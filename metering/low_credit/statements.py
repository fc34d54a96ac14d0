"""All SQL of low-credit rules and states, a sentence each."""

from typing import Final

from sqlalchemy import text

# The credit of a wallet `w` that has expired and is not debited yet. The wallet holds what is left
# of its current lot.
_IS_OVER: Final = """remaining_minor > 0 AND frozen_at IS NULL
    AND expires_at <= (SELECT clock_timestamp())"""
EXPIRED: Final = f"""coalesce((SELECT sum(CASE WHEN o.lot_id = w.lot_id THEN w.lot_left_minor
    ELSE o.remaining_minor END)::bigint FROM credit_lots o WHERE o.wallet_id = w.wallet_id
    AND {_IS_OVER}), 0)"""
# The same for many wallets, of which nearly none has any: expired credit is debited every few
# seconds. The oldest of it is looked up once, and only its wallets are summed. The limit bounds the
# work when very much expires at once.
_EXPIRED_OF_MANY: Final = f"""CASE WHEN w.wallet_id IN (SELECT wallet_id FROM credit_lots
    WHERE {_IS_OVER} ORDER BY expires_at LIMIT 1000) THEN {EXPIRED} ELSE 0 END"""
# The credit that a wallet `w` can spend: its balance without frozen and expired credit. Below zero
# it is debt. Alerts, top-ups, the API and the commands all use this number. It fits 64 bits: frozen
# and expired credit are parts of the lots, so it is no further below zero than the debt.
_SPENDABLE: Final = "w.balance_minor - w.frozen_minor - {expired}"
SPENDABLE: Final = _SPENDABLE.format(expired=EXPIRED)

# Wallets whose state by a rule has to change: low and not marked, or marked and recovered. A rule
# of the wallet's own replaces the business's defaults. A wallet without entries never had credit,
# so it is not low. Low means that the spendable credit is at or below the threshold. Rows without a
# rule id are wallets whose top-up rule's `low_since` disagrees with the balance. `{wallets}`
# selects the wallets. Their columns are carried along: a second join would be a product of all with
# all where the planner thinks that the wallets are few.
_CROSSINGS = """
    WITH looked_at AS ({wallets}),
    ruled AS (
        SELECT w.*, r.rule_id, r.threshold_minor, r.recover_at_minor
        FROM looked_at w JOIN low_credit_rules r ON r.wallet_id = w.wallet_id
        WHERE w.version > 0
        UNION ALL
        SELECT w.*, r.rule_id, r.threshold_minor, r.recover_at_minor
        FROM looked_at w JOIN low_credit_rules r
            ON r.wallet_id IS NULL AND r.business_id = w.business_id AND r.currency = w.currency
            AND (w.spendable_minor <= r.threshold_minor OR w.alert_sequence > 0)
        WHERE w.version > 0
            AND NOT EXISTS (SELECT 1 FROM low_credit_rules own WHERE own.wallet_id = w.wallet_id)
    )
    SELECT r.wallet_id, r.business_id, r.customer_id, r.currency, r.spendable_minor,
        r.rule_id, r.threshold_minor, r.recover_at_minor, s.wallet_id IS NOT NULL AS was_low
    FROM ruled r LEFT JOIN low_credit_states s USING (wallet_id, rule_id)
    WHERE (s.wallet_id IS NULL AND r.spendable_minor <= r.threshold_minor)
       OR (s.wallet_id IS NOT NULL AND r.spendable_minor >= r.recover_at_minor)
    UNION ALL
    SELECT w.wallet_id, w.business_id, w.customer_id, w.currency, w.spendable_minor,
        NULL, t.threshold_minor, NULL, t.low_since IS NOT NULL
    FROM looked_at w JOIN top_up_rules t USING (wallet_id)
    WHERE (t.low_since IS NOT NULL) <> (w.spendable_minor <= t.threshold_minor)
    ORDER BY wallet_id, threshold_minor DESC
"""
_COLUMNS = f"""wallet_id, business_id, customer_id, currency, version, alert_sequence,
    {_SPENDABLE.format(expired=_EXPIRED_OF_MANY)} AS spendable_minor"""

# Crossings of some wallets.
CROSSINGS: Final = text(
    _CROSSINGS.format(
        wallets=f"SELECT {_COLUMNS} FROM wallets w WHERE wallet_id = ANY(:wallet_ids)"
    )
)
# Correct `low_since` of top-up rules. SKIP LOCKED: a rule that another transaction holds is left to
# the scheduled check.
MARK_TOP_UPS: Final = text(f"""
    UPDATE top_up_rules r
    SET low_since = CASE WHEN o.is_low THEN CAST(:now AS timestamptz) END
    FROM (
        SELECT t.wallet_id, w.is_low FROM top_up_rules t
        CROSS JOIN LATERAL (
            SELECT {SPENDABLE} <= t.threshold_minor AS is_low FROM wallets w
            WHERE wallet_id = t.wallet_id) w
        WHERE t.wallet_id = ANY(:wallet_ids) AND (t.low_since IS NOT NULL) <> w.is_low
        FOR NO KEY UPDATE OF t SKIP LOCKED) o
    WHERE r.wallet_id = o.wallet_id
""")
# How far the scheduled check came. SKIP LOCKED: a second run at the same time has nothing to do.
PLACE: Final = text("SELECT after FROM low_credit_check FOR UPDATE SKIP LOCKED")
# Store how far the check came.
MOVE_PLACE: Final = text("UPDATE low_credit_check SET after = :after")
# A page of wallets for the scheduled check, in the order of their ids.
WALLET_PAGE: Final = text("""
    SELECT wallet_id FROM wallets WHERE wallet_id > :after ORDER BY wallet_id LIMIT :page
""")
# Lock wallets that seemed to cross. SKIP LOCKED: a posting that holds a wallet finds the crossing
# itself.
LOCK: Final = text("""
    SELECT wallet_id FROM wallets
    WHERE wallet_id = ANY(:wallet_ids) ORDER BY wallet_id FOR NO KEY UPDATE SKIP LOCKED
""")
# Mark wallets as low by a rule; return the marks. SKIP LOCKED: to wait for a rule that is being
# deleted, or to fail with it, would delay the posting.
MARK_LOW: Final = text("""
    INSERT INTO low_credit_states (wallet_id, rule_id, since)
    SELECT c.wallet_id, r.rule_id, :now
    FROM unnest(CAST(:wallet_ids AS text[]), CAST(:rule_ids AS text[]))
        AS c (wallet_id, rule_id)
    JOIN low_credit_rules r USING (rule_id) FOR KEY SHARE OF r SKIP LOCKED
    RETURNING wallet_id, rule_id
""")
# Arm rules again.
MARK_RECOVERED: Final = text("""
    DELETE FROM low_credit_states s
    USING unnest(CAST(:wallet_ids AS text[]), CAST(:rule_ids AS text[]))
        AS c (wallet_id, rule_id)
    WHERE s.wallet_id = c.wallet_id AND s.rule_id = c.rule_id
""")
# Take the next alert numbers of wallets; return the last number of each.
NUMBER_ALERTS: Final = text("""
    UPDATE wallets w SET alert_sequence = w.alert_sequence + n.alerts
    FROM unnest(CAST(:wallet_ids AS text[]), CAST(:counts AS bigint[]))
        AS n (wallet_id, alerts)
    WHERE w.wallet_id = n.wallet_id RETURNING w.wallet_id, w.alert_sequence
""")
# The wallet of a customer of this business in a currency.
WALLET: Final = text("""
    SELECT wallet_id FROM wallets
    WHERE business_id = :business_id AND customer_id = :customer_id AND currency = :currency
""")
# A rule: for one wallet, or (wallet_id NULL) the default of a business and currency. The same
# threshold again changes the band.
SET_WALLET_RULE: Final = text("""
    INSERT INTO low_credit_rules (rule_id, business_id, wallet_id, currency, threshold_minor,
        recover_at_minor)
    VALUES (:rule_id, :business_id, :wallet_id, :currency, :threshold_minor, :recover_at_minor)
    ON CONFLICT (wallet_id, threshold_minor) WHERE wallet_id IS NOT NULL
        DO UPDATE SET recover_at_minor = excluded.recover_at_minor, updated_at = now()
    RETURNING rule_id
""")
SET_DEFAULT_RULE: Final = text("""
    INSERT INTO low_credit_rules (rule_id, business_id, wallet_id, currency, threshold_minor,
        recover_at_minor)
    VALUES (:rule_id, :business_id, NULL, :currency, :threshold_minor, :recover_at_minor)
    ON CONFLICT (business_id, currency, threshold_minor) WHERE wallet_id IS NULL
        DO UPDATE SET recover_at_minor = excluded.recover_at_minor, updated_at = now()
    RETURNING rule_id
""")
# Delete a rule with its states.
DELETE_RULE: Final = text("""
    DELETE FROM low_credit_rules WHERE business_id = :business_id AND rule_id = :rule_id
""")
# The rules of a business, with the customer of a wallet's own rule.
_RULES = (
    "SELECT r.rule_id, r.wallet_id, w.customer_id, r.currency, r.threshold_minor,"
    " r.recover_at_minor FROM low_credit_rules r LEFT JOIN wallets w USING (wallet_id)"
    " WHERE r.business_id = :business_id"
)
# All of them, oldest first.
RULES: Final = text(f"{_RULES} ORDER BY r.rule_id")
# One of them.
RULE: Final = text(f"{_RULES} AND r.rule_id = :rule_id")
# A page of them, newest first.
RULE_PAGE: Final = text(f"""
    {_RULES} AND (CAST(:after AS text) IS NULL OR r.rule_id < :after)
    ORDER BY r.rule_id DESC LIMIT :page OFFSET :offset
""")
