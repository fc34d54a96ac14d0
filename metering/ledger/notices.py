"""Webhooks about ledger entries: all but usage, which would be too many."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from metering.clock import to_wire
from metering.ledger.entry import Entry
from metering.webhook.outbox import Notice, WebhookType, publish


def publish_notices(conn: Connection, entries: Sequence[Entry], now: datetime) -> None:
    """Publish a webhook for each entry that is not usage."""
    notified = [entry for entry in entries if entry.kind != "usage"]
    publish(conn, [_notice(entry) for entry in notified], now)


def _notice(entry: Entry) -> Notice:
    return Notice(
        business_id=entry.business_id,
        type=_type_of(entry),
        data={
            "id": entry.entry_id,
            "customer_id": entry.customer_id,
            "currency": entry.currency,
            "amount": entry.amount_minor,
            "is_credit": entry.is_credit,
            "event_type": entry.event_type,
            "kind": entry.kind,
            "before_balance": entry.before_minor,
            "after_balance": entry.after_minor,
            "reason": entry.reason,
            "reference_object_id": entry.reference,
            "version": entry.version,
            "created_at": to_wire(entry.created_at),
        },
    )


def _type_of(entry: Entry) -> WebhookType:
    if entry.is_credit:
        return "credit.added"
    return "credit.expired" if entry.kind == "expiry" else "credit.deducted"
