"""Every statement of the local gateway's SQLite database."""

from typing import Final

SCHEMA: Final = (
    # A payment. One for a key, for ever; `request` is what the key was first used with.
    """
    CREATE TABLE IF NOT EXISTS payments (
        number INTEGER PRIMARY KEY,
        payment_id TEXT NOT NULL UNIQUE,
        idempotency_key TEXT NOT NULL UNIQUE,
        request TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('pending', 'succeeded', 'failed')),
        failure TEXT,
        -- When a pending one succeeds by itself, in seconds of the epoch; NULL: never.
        succeeds_at REAL,
        created_at TEXT NOT NULL
    )
    """,
    # Refunds and disputes of payments.
    """
    CREATE TABLE IF NOT EXISTS reversals (
        number INTEGER PRIMARY KEY,
        reversal_id TEXT NOT NULL UNIQUE,
        payment_id TEXT NOT NULL REFERENCES payments (payment_id),
        kind TEXT NOT NULL CHECK (kind IN ('refund', 'dispute')),
        status TEXT NOT NULL,
        amount_minor INTEGER NOT NULL CHECK (amount_minor > 0),
        created_at TEXT NOT NULL
    )
    """,
    # What is told of them: written with the change, sent until it is taken.
    """
    CREATE TABLE IF NOT EXISTS webhooks (
        number INTEGER PRIMARY KEY,
        webhook_id TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL,
        body BLOB NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        due_at REAL NOT NULL,
        delivered_at TEXT
    )
    """,
)

# A payment for a key that has none yet.
ADD_PAYMENT: Final = """
    INSERT INTO payments
        (payment_id, idempotency_key, request, status, failure, succeeds_at, created_at)
    VALUES (:payment_id, :idempotency_key, :request, :status, :failure, :succeeds_at, :created_at)
    ON CONFLICT (idempotency_key) DO NOTHING
"""
# Payments in the order in which they were made: of a key, of an id, or all.
PAYMENTS: Final = """
    SELECT payment_id, idempotency_key, request, status, failure, created_at FROM payments
    WHERE (:idempotency_key IS NULL OR idempotency_key = :idempotency_key)
        AND (:payment_id IS NULL OR payment_id = :payment_id)
    ORDER BY number
"""
# Pending payments whose time has come.
DUE_PAYMENTS: Final = """
    SELECT payment_id FROM payments
    WHERE status = 'pending' AND succeeds_at <= ? ORDER BY number
"""
# A pending payment ends; one that has ended stays as it is.
END_PAYMENT: Final = """
    UPDATE payments SET status = :status, failure = :failure
    WHERE payment_id = :payment_id AND status = 'pending'
"""
# A refund or a dispute.
ADD_REVERSAL: Final = """
    INSERT INTO reversals (reversal_id, payment_id, kind, status, amount_minor, created_at)
    VALUES (:reversal_id, :payment_id, :kind, :status, :amount_minor, :created_at)
"""
# Refunds and disputes in the order in which they were made: of a payment, or of an id.
REVERSALS: Final = """
    SELECT reversal_id, payment_id, kind, status, amount_minor, created_at FROM reversals
    WHERE payment_id = :payment_id OR reversal_id = :reversal_id ORDER BY number
"""
# A dispute goes on.
SET_DISPUTE: Final = "UPDATE reversals SET status = ? WHERE reversal_id = ? AND kind = 'dispute'"
# A webhook, and what was told until now.
ADD_WEBHOOK: Final = """
    INSERT INTO webhooks (webhook_id, type, body, due_at)
    VALUES (:webhook_id, :type, :body, :due_at)
"""
WEBHOOKS: Final = """
    SELECT webhook_id, type, attempts, delivered_at FROM webhooks ORDER BY number
"""
# The next webhook to be sent.
DUE_WEBHOOK: Final = """
    SELECT number, webhook_id, body, attempts FROM webhooks
    WHERE delivered_at IS NULL AND due_at <= ? ORDER BY number LIMIT 1
"""
# What came of an attempt to send one.
WEBHOOK_TRIED: Final = """
    UPDATE webhooks SET attempts = attempts + 1, due_at = :due_at, delivered_at = :delivered_at
    WHERE number = :number
"""
# All of them are sent once more, under their own ids.
RESEND: Final = "UPDATE webhooks SET delivered_at = NULL, due_at = ?"
