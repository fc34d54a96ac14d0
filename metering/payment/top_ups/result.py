"""What becomes of a rule after its top-up was paid or declined, and what its business is told."""

from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row

from metering.clock import to_wire
from metering.ids import PurchaseId, WalletId
from metering.payment.charges import statements
from metering.webhook.outbox import Json, Notice, publish

# After a first decline: a card that has no money now may have some in an hour.
RETRY_S: Final = 3600
RETRY_MAX_S: Final = 86_400

# Who has declined a top-up: the provider; or nobody was asked, because its account takes no charges
# any more; or nobody has, because the rule is off or a person lets it fail.
DeclinedBy = Literal["provider", "account_disabled", "nobody"]


def note_paid(conn: Connection, purchase_id: PurchaseId) -> None:
    """Let the rule, which is locked, forget its declines, if the purchase is its top-up."""
    if (wallet_id := _rule_of(conn, purchase_id)) is not None:
        conn.execute(statements.PAID, {"wallet_id": wallet_id})


def note_unpaid(
    conn: Connection, purchase_id: PurchaseId, declined_by: DeclinedBy, retry_s: int
) -> None:
    """Let the rule, which is locked, follow from a purchase that has failed, if it is its top-up.

    After a decline it waits, twice as long each time; after the last one it is off. It is off as
    well if its account takes no charges any more. If nobody has declined, it may begin anew.
    """
    wallet_id = _rule_of(conn, purchase_id)
    if wallet_id is None or declined_by == "nobody":
        return
    is_declined = declined_by == "provider"
    values: dict[str, object] = {"wallet_id": wallet_id}
    if is_declined:
        values |= {"retry_s": retry_s, "retry_max_s": RETRY_MAX_S}
        rule = conn.execute(statements.DECLINED, values).one()
    else:
        rule = conn.execute(statements.DISABLE_RULE, {**values, "reason": declined_by}).one()
    purchase = conn.execute(statements.PURCHASE_OUTCOME, {"purchase_id": purchase_id}).one()
    tell_of_failure(
        conn,
        rule,
        purchase,
        reason="declined" if is_declined else declined_by,
        retry_at=None if rule.is_disabled else rule.retry_at,
        is_disabled=rule.is_disabled,
        about={
            "purchase_id": purchase_id,
            "amount": purchase.price_minor,
            "failure": purchase.failure,
        },
    )


def _rule_of(conn: Connection, purchase_id: PurchaseId) -> WalletId | None:
    values = {"purchase_id": purchase_id}
    found: WalletId | None = conn.execute(statements.LOCK_RULE_OF, values).scalar_one_or_none()
    return found


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
