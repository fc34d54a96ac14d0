"""Apply the facts of payments to purchases and checkouts, their charges and top-up rules.

All paths end here: a webhook, the answer of a provider, and the sweep over purchases that are due.
"""

import structlog
from sqlalchemy import Connection

from metering.db import DATABASE_ERRORS, cause_of, is_server_fault
from metering.errors import GullakError
from metering.ids import PurchaseId
from metering.payment.charges.store import end_charge, lock_charge_of
from metering.payment.checkouts.checkout import update_checkout
from metering.payment.facts import PaidFor
from metering.payment.top_ups.result import (
    RETRY_S,
    DeclinedBy,
    lock_rule_of,
    note_paid,
    note_unpaid,
)
from metering.purchase import statements as of_purchases
from metering.purchase.purchases import lock_purchase
from metering.purchase.settle import settle_purchase

log = structlog.get_logger("gullak.purchase")


def apply_payments(
    conn: Connection,
    paid_for: PaidFor,
    decline_retry_s: int = RETRY_S,
    declined_by: DeclinedBy = "provider",
) -> bool:
    """Update a purchase or checkout from its payments; tell whether that changed anything.

    `decline_retry_s`: how long a top-up rule waits after its first decline.

    Raises: NotFoundError if there is no such purchase or checkout.
    """
    if paid_for.checkout_id is not None:
        return update_checkout(conn, paid_for.checkout_id)
    if paid_for.purchase_id is not None:
        return _settle(conn, paid_for.purchase_id, decline_retry_s, declined_by)
    return False


def settle_due(conn: Connection, purchase_id: PurchaseId, decline_retry_s: int = RETRY_S) -> bool:
    """Settle a purchase that is due; tell whether that changed anything.

    If the ledger refuses it, because a balance would be out of range, it would do so every time:
    the purchase gets the reason as its `failure`, and is not due until a new fact arrives. A fault
    of the server is raised, and the purchase stays due.
    """
    try:
        with conn.begin_nested():
            return apply_payments(conn, PaidFor(purchase_id, None), decline_retry_s)
    except (*DATABASE_ERRORS, GullakError) as error:
        if is_server_fault(error):
            raise
        reason = _reason(error)
        log.warning("purchase.refused", purchase_id=purchase_id, reason=reason)
        conn.execute(of_purchases.NOT_SETTLED, {"purchase_id": purchase_id, "reason": reason})
        return False


def _reason(error: Exception) -> str:
    """Return a text for people: of an error of the database only its name."""
    if isinstance(error, GullakError):
        return error.message
    return f"the database refuses it: {type(cause_of(error)).__name__}"


def _settle(
    conn: Connection, purchase_id: PurchaseId, decline_retry_s: int, declined_by: DeclinedBy
) -> bool:
    """Settle a purchase, and end its open charge if that decides it."""
    charge = lock_charge_of(conn, purchase_id=purchase_id)
    if charge is None or not charge.is_open:
        return settle_purchase(conn, purchase_id)
    lock_purchase(conn, purchase_id)
    rule = lock_rule_of(conn, purchase_id)
    has_changed = settle_purchase(conn, purchase_id)
    purchase = lock_purchase(conn, purchase_id)
    if purchase.status == "pending":
        return has_changed
    is_paid = purchase.status != "failed"
    end_charge(
        conn,
        charge.charge_id,
        "succeeded" if is_paid else "failed",
        payment_id=purchase.payment_id,
        failure=purchase.failure,
    )
    if rule is not None and is_paid:
        note_paid(conn, rule)
    elif rule is not None:
        note_unpaid(conn, rule, purchase, declined_by, decline_retry_s)
    return True
