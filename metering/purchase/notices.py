"""What businesses are told of purchases: that one succeeded, failed, or was reversed."""

from sqlalchemy import Connection

from metering.purchase import statements
from metering.purchase.purchases import Purchase
from metering.webhook.outbox import Json, Notice, WebhookType, publish


def tell_of_purchase(conn: Connection, before: Purchase, after: Purchase) -> None:
    """Write a notice of what has become of a purchase to the outbox, if anything has."""
    types: list[WebhookType] = []
    if before.entry_id is None and after.entry_id is not None:
        types.append("purchase.succeeded")
    if after.status == "failed" and before.status != "failed":
        types.append("purchase.failed")
    if after.reversed_minor != before.reversed_minor:
        types.append("purchase.reversed")
    if not types:
        return
    now = conn.execute(statements.CLOCK).scalar_one()
    notices = [Notice(after.business_id, type_, shown(after)) for type_ in types]
    publish(conn, notices, now)


def shown(purchase: Purchase) -> dict[str, Json]:
    """Return what is told of a purchase; amounts in minor units."""
    return {
        "purchase_id": purchase.purchase_id,
        "customer_id": purchase.customer_id,
        "currency": purchase.currency,
        "order_id": purchase.order_id,
        "origin": purchase.origin,
        "package_id": purchase.package_id,
        "status": purchase.status,
        "price": purchase.price_minor,
        "credit": purchase.credit_minor,
        "paid": purchase.paid_minor,
        "reversed": purchase.reversed_minor,
        "shortfall": purchase.shortfall_minor,
        "provider": purchase.provider,
        "payment_id": purchase.payment_id,
        "ledger_entry_id": purchase.entry_id,
        "failure": purchase.failure,
    }
