"""Every statement of the simulator's SQLite database."""

from typing import Final

SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS objects (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        -- payment_intent, checkout.session, refund, dispute, event; or answer: the answer to the
        -- first request with an idempotency key, under that key.
        kind TEXT NOT NULL,
        -- The JSON that the API shows.
        body TEXT NOT NULL,
        -- When an event is sent, or a payment succeeds by itself, in seconds of the epoch.
        due_at REAL,
        attempts INTEGER NOT NULL DEFAULT 0
    )
"""
# A new object, or an object that has changed.
PUT: Final = """
    INSERT INTO objects (id, kind, body, due_at) VALUES (:id, :kind, :body, :due_at)
    ON CONFLICT (id) DO UPDATE SET body = excluded.body, due_at = excluded.due_at
"""
GET: Final = "SELECT body FROM objects WHERE kind = :kind AND id = :id"
# A page of objects, the newest first; `parent`: the customer or the payment that they name.
PAGE: Final = """
    SELECT body FROM objects
    WHERE kind = :kind AND json_extract(body, '$.created') >= :created
        AND (:parent IS NULL OR :parent = coalesce(
            json_extract(body, '$.customer'), json_extract(body, '$.payment_intent')))
        AND (:after IS NULL OR number < (SELECT number FROM objects WHERE id = :after))
    ORDER BY number DESC LIMIT :rows
"""
# The oldest object of a kind that is due.
DUE: Final = """
    SELECT id, body, due_at, attempts FROM objects WHERE kind = :kind AND due_at <= :now
    ORDER BY number LIMIT 1
"""
# An event was sent. It keeps a moment that was set while it was on its way.
SENT: Final = """
    UPDATE objects SET body = :body, due_at = :next_at, attempts = attempts + 1
    WHERE id = :id AND due_at = :due_at
"""
