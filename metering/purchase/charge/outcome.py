"""What becomes of a rule after its top-up was paid or declined, and what its business is told."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row

from metering.clock import to_wire
from metering.ids import PurchaseId
from metering.purchase.charge import statements
from metering.webhook.outbox import Json, Notice, publish

# After a first decline: a card that has no money now may have some in an hour.
RETRY_S: Final = 3600
RETRY_MAX_S: Final = 86_400


def note_top_up(conn: Connection, purchase_id: PurchaseId, *, is_paid: bool, retry_s: int) -> None:
    """Let the rule, which is locked, count a purchase that was paid or failed, if it made it.

    After a decline it waits, twice as long each time; after the last one it is off.
    """
    wallet_id = conn.execute(
        statements.LOCK_RULE_OF, {"purchase_id": purchase_id}
    ).scalar_one_or_none()
    if wallet_id is None:
        return
    if is_paid:
        conn.execute(statements.PAID, {"wallet_id": wallet_id})
        return
    values = {"wallet_id": wallet_id, "retry_s": retry_s, "retry_max_s": RETRY_MAX_S}
    rule = conn.execute(statements.DECLINED, values).one()
    purchase = conn.execute(statements.PURCHASE_OUTCOME, {"purchase_id": purchase_id}).one()
    tell_of_failure(
        conn,
        rule,
        purchase,
        reason="declined",
        retry_at=None if rule.is_disabled else rule.retry_at,
        is_disabled=rule.is_disabled,
        about={
            "purchase_id": purchase_id,
            "amount": purchase.price_minor,
            "failure": purchase.failure,
        },
    )


def tell_of_failure(
    conn: Connection,
    rule: Row[Any],
    wallet: Row[Any],
    *,
    reason: str,
    retry_at: datetime | None,
    is_disabled: bool,
    about: dict[str, Json],
) -> None:
    """Write `topup.failed` to the outbox: why, and whether and when the rule tries again."""
    now = conn.execute(statements.CLOCK).scalar_one()
    data: dict[str, Json] = {
        "customer_id": wallet.customer_id,
        "wallet": wallet.currency,
        "currency": wallet.currency,
        "threshold_amount": rule.threshold_minor,
        "reason": reason,
        "declines": rule.declines,
        "declines_max": rule.declines_max,
        "is_disabled": is_disabled,
        "retry_at": None if retry_at is None else to_wire(retry_at),
        "purchase_id": None,
        "amount": None,
        "failure": None,
        **about,
    }
    publish(conn, [Notice(rule.business_id, "topup.failed", data)], now)
