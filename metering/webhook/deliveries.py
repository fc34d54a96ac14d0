"""Where deliveries are: which ones wait, fail and why, were given up, or have arrived."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection

from metering import db
from metering.clock import utc_now
from metering.errors import NotFoundError
from metering.ids import BusinessId, EndpointId, WebhookEventId
from metering.webhook import statements
from metering.webhook.outbox import Notice, publish_to
from metering.webhook.retry import ATTEMPTS_PER_ROUND

# `pending` deliveries will be tried; `failing` are the pending ones with a failed attempt;
# `undelivered` are all that have not arrived.
DeliveryState = Literal["pending", "failing", "dead", "delivered", "undelivered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to one endpoint.

    `attempts` counts from the event or from the last replay. `next_attempt_at` is None if no
    attempt will follow; if it is in the past, the delivery is due. `last_error` says why the last
    attempt failed.
    """

    webhook_event_id: WebhookEventId
    endpoint_id: EndpointId
    url: str
    type: str
    occurred_at: datetime
    status: Literal["pending", "delivered", "dead"]
    attempts: int
    next_attempt_at: datetime | None
    delivered_at: datetime | None
    last_attempt_at: datetime | None
    last_status_code: int | None
    last_error: str | None


def page_of_deliveries(
    conn: Connection,
    business_id: BusinessId,
    *,
    endpoint_id: EndpointId | None = None,
    state: DeliveryState | None = None,
    page: int,
    offset: int = 0,
    after: WebhookEventId | None = None,
) -> list[Delivery]:
    """Return up to `page` deliveries, of one endpoint or of all, newest event first.

    With `after`, only those of events older than this one.

    Raises: NotFoundError if the business has no event with the id `after`.
    """
    if after is not None:
        check_event(conn, business_id, after)
    values = {
        "business_id": business_id,
        "endpoint_id": endpoint_id,
        "attempts_per_round": ATTEMPTS_PER_ROUND,
        "after": after,
        "page": page,
        "offset": offset,
        "reach": page + offset,
    }
    return db.rows(Delivery, conn.execute(statements.DELIVERIES[state or "all"], values))


def check_event(conn: Connection, business_id: BusinessId, event_id: WebhookEventId) -> None:
    """Raise NotFoundError if the business has no such event."""
    key = {"business_id": business_id, "webhook_event_id": event_id}
    if conn.execute(statements.EVENT_EXISTS, key).one_or_none() is None:
        raise NotFoundError("webhook event", event_id)


def send_test(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> WebhookEventId:
    """Send a `webhook.test` to one endpoint, whatever types it receives; return the event's id.

    Raises: NotFoundError if the business has no such endpoint.
    """
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    if conn.execute(statements.LOCK_ENDPOINT, key).one_or_none() is None:
        raise NotFoundError("webhook endpoint", endpoint_id)
    return publish_to(conn, endpoint_id, Notice(business_id, "webhook.test", {}), utc_now())
