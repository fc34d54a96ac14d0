"""All SQL of purchases, a sentence each."""

from typing import Final

from sqlalchemy import text

_PURCHASE: Final = """purchase_id, business_id, customer_id, currency, order_id, paid_minor,
    credit_minor, status, entry_id, paid_at, credited_at"""

# A paid order, once per order number.
INSERT: Final = text(
    "INSERT INTO purchases (purchase_id, business_id, customer_id, currency, order_id, paid_minor,"
    " credit_minor, paid_at) VALUES (:purchase_id, :business_id, :customer_id, :currency,"
    " :order_id, :paid_minor, :credit_minor, now())"
    " ON CONFLICT (business_id, order_id) DO NOTHING RETURNING purchase_id"
)
# The purchase that an order number made.
BY_ORDER: Final = text(
    f"SELECT {_PURCHASE} FROM purchases WHERE business_id = :business_id AND order_id = :order_id"
)
# One purchase, locked: of two deliveries at once the second waits and finds it credited.
LOCK: Final = text(f"SELECT {_PURCHASE} FROM purchases WHERE purchase_id = :purchase_id FOR UPDATE")
# The purchase has its credit.
MARK_CREDITED: Final = text(
    "UPDATE purchases SET status = 'credited', entry_id = :entry_id, credited_at = now()"
    " WHERE purchase_id = :purchase_id"
)
# Paid and not yet credited, oldest first.
UNCREDITED: Final = text(
    "SELECT purchase_id FROM purchases WHERE status = 'paid' ORDER BY paid_at LIMIT :page"
)
