"""The outbox: a webhook is written in the transaction of its cause.

The delivery reads committed rows only. So no webhook is sent for a change that was rolled back, and
none is lost for a change that was committed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

import orjson
from sqlalchemy import Connection

from metering.ids import BusinessId, EndpointId, WalletId, WebhookEventId, new_id
from metering.webhook import statements

# No float: amounts are integers, and exact decimals travel as text.
Json: TypeAlias = "str | int | bool | Sequence[Json] | Mapping[str, Json] | None"

WebhookType = Literal[
    "credit.balance_low",
    "credit.balance_recovered",
    "credit.added",
    "credit.deducted",
    "credit.expiring",
    "credit.expired",
    "purchase.succeeded",
    "purchase.failed",
    "purchase.reversed",
    "checkout.completed",
    "checkout.failed",
    "checkout.expired",
    "topup.failed",
    "usage.unpriced",
    "webhook.test",
]

# The value of `data.payload_type`. It names the shape of the rest of `data`.
PAYLOAD_TYPES: Final[dict[WebhookType, str]] = {
    "credit.balance_low": "CreditBalanceLow",
    "credit.balance_recovered": "CreditBalanceRecovered",
    "credit.added": "CreditLedgerEntry",
    "credit.deducted": "CreditLedgerEntry",
    "credit.expiring": "CreditLot",
    "credit.expired": "CreditLedgerEntry",
    "purchase.succeeded": "Purchase",
    "purchase.failed": "Purchase",
    "purchase.reversed": "Purchase",
    "checkout.completed": "Checkout",
    "checkout.failed": "Checkout",
    "checkout.expired": "Checkout",
    "topup.failed": "TopUp",
    "usage.unpriced": "UnpricedUsage",
    "webhook.test": "Test",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """A webhook to write. `data` lacks `payload_type`, which follows from the type.

    `sequence` counts 1, 2, 3 … per wallet, so that a receiver sees order and gaps. Both are None if
    it is not about a wallet.
    """

    business_id: BusinessId
    type: WebhookType
    data: Mapping[str, Json]
    wallet_id: WalletId | None = None
    sequence: int | None = None


def publish(
    conn: Connection, notices: Sequence[Notice], occurred_at: datetime
) -> list[WebhookEventId]:
    """Write `notices` to the outbox, with a delivery for each endpoint that receives the type.

    It takes two statements for any number of notices. The ids are in the order of the notices.
    """
    if not notices:
        return []
    event_ids = [WebhookEventId(new_id("msg")) for _ in notices]
    columns = _event_columns(event_ids, notices, occurred_at)
    conn.execute(statements.INSERT_EVENTS, columns)
    wanted = ("webhook_event_ids", "business_ids", "types")
    conn.execute(statements.INSERT_DELIVERIES, {name: columns[name] for name in wanted})
    return event_ids


def _event_columns(
    event_ids: Sequence[WebhookEventId], notices: Sequence[Notice], occurred_at: datetime
) -> dict[str, object]:
    return {
        "webhook_event_ids": event_ids,
        "business_ids": [notice.business_id for notice in notices],
        "types": [notice.type for notice in notices],
        "wallet_ids": [notice.wallet_id for notice in notices],
        "sequences": [notice.sequence for notice in notices],
        "data": [_data(notice) for notice in notices],
        "occurred_at": occurred_at,
    }


def publish_to(
    conn: Connection, endpoint_id: EndpointId, notice: Notice, occurred_at: datetime
) -> WebhookEventId:
    """Write a notice for one endpoint alone, whatever types it receives; return its id."""
    event_id = WebhookEventId(new_id("msg"))
    conn.execute(statements.INSERT_EVENTS, _event_columns([event_id], [notice], occurred_at))
    delivery = {"webhook_event_id": event_id, "endpoint_id": endpoint_id}
    conn.execute(statements.INSERT_DELIVERY, delivery)
    return event_id


def _data(notice: Notice) -> str:
    return orjson.dumps({"payload_type": PAYLOAD_TYPES[notice.type], **notice.data}).decode()
