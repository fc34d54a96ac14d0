"""The state of a top-up rule after its purchase was paid or declined, and the notice of it."""

from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row

from metering.clock import to_wire
from metering.db import database_now
from metering.ids import PurchaseId, WalletId
from metering.payment.top_ups import statements
from metering.purchase.purchases import Purchase
from metering.webhook.outbox import Json, Notice, publish

# After a first decline: a card that has no money now may have some in an hour.
RETRY_S: Final = 3600
RETRY_MAX_S: Final = 86_400

# Who declined a top-up. `account_disabled`: its provider account accepts no charges any more.
# `nobody`: the rule is disabled, or a person ended the charge.
DeclinedBy = Literal["provider", "account_disabled", "nobody"]


def lock_rule_of(conn: Connection, purchase_id: PurchaseId) -> WalletId | None:
    """Lock the rule that made a purchase, and return its wallet. Returns None if none made it."""
    values = {"purchase_id": purchase_id}
    found: WalletId | None = conn.execute(statements.LOCK_RULE_OF, values).scalar_one_or_none()
    return found


def note_paid(conn: Connection, wallet_id: WalletId) -> None:
    """Reset the declines of a rule, which is locked."""
    conn.execute(statements.PAID, {"wallet_id": wallet_id})


def note_unpaid(
    conn: Connection, wallet_id: WalletId, purchase: Purchase, declined_by: DeclinedBy, retry_s: int
) -> None:
    """Let a rule, which is locked, wait or disable it after its purchase has failed.

    After a decline it waits, twice as long each time; after the last one it is disabled. It is also
    disabled if its account accepts no charges any more. If nobody declined, it may start again.
    """
    if declined_by == "nobody":
        return
    is_declined = declined_by == "provider"
    values: dict[str, object] = {"wallet_id": wallet_id}
    if is_declined:
        values |= {"retry_s": retry_s, "retry_max_s": RETRY_MAX_S}
        rule = conn.execute(statements.DECLINED, values).one()
    else:
        rule = conn.execute(statements.DISABLE_RULE, {**values, "reason": declined_by}).one()
    tell_of_failure(
        conn,
        rule,
        purchase,
        reason="declined" if is_declined else declined_by,
        retry_at=None if rule.is_disabled else rule.retry_at,
        is_disabled=rule.is_disabled,
        about={
            "purchase_id": purchase.purchase_id,
            "amount": purchase.price_minor,
            "failure": purchase.failure,
        },
    )


def tell_of_failure(
    conn: Connection,
    rule: Row[Any],
    wallet: Purchase | Row[Any],
    *,
    reason: str,
    retry_at: datetime | None,
    is_disabled: bool,
    about: dict[str, Json] | None = None,
) -> None:
    """Write `topup.failed` to the outbox: why, and whether and when the rule tries again."""
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
        **(about or {}),
    }
    publish(conn, [Notice(rule.business_id, "topup.failed", data)], database_now(conn))
