"""Where deliveries are: what waits, what fails and why, what was given up, what arrived."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection

from metering.clock import utc_now
from metering.errors import NotFoundError
from metering.ids import BusinessId, EndpointId, WebhookEventId
from metering.webhook import statements
from metering.webhook.outbox import Notice, publish_to
from metering.webhook.retry import ATTEMPTS_PER_ROUND

# `pending` is what will be tried, `failing` the part of it that was tried in vain; `undelivered` is
# all but what has arrived.
DeliveryState = Literal["pending", "failing", "dead", "delivered", "undelivered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to one endpoint.

    `attempts`: since it was last begun with, by what happened or by a replay. `next_attempt_at`:
    None if there is none; in the past, it is due.
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

    `after`: only those of events older than this one.

    Raises:
        NotFoundError: the business has no event with the id `after`.

    """
    if after is not None:
        _check_event(conn, business_id, after)
    values = {
        "business_id": business_id,
        "endpoint_id": endpoint_id,
        "attempts_per_round": ATTEMPTS_PER_ROUND,
        "after": after,
        "page": page,
        "offset": offset,
        "reach": page + offset,
    }
    rows = conn.execute(statements.DELIVERIES[state or "all"], values)
    return [Delivery(**row) for row in rows.mappings()]


def _check_event(conn: Connection, business_id: BusinessId, event_id: WebhookEventId) -> None:
    key = {"business_id": business_id, "webhook_event_id": event_id}
    if conn.execute(statements.EVENT_EXISTS, key).one_or_none() is None:
        raise NotFoundError("webhook event", event_id)


def send_test(conn: Connection, business_id: BusinessId, endpoint_id: EndpointId) -> WebhookEventId:
    """Send a `webhook.test` to one endpoint, whatever types it wants; return the event's id.

    Raises:
        NotFoundError: the business has no such endpoint.

    """
    key = {"business_id": business_id, "endpoint_id": endpoint_id}
    if conn.execute(statements.LOCK_ENDPOINT, key).one_or_none() is None:
        raise NotFoundError("webhook endpoint", endpoint_id)
    return publish_to(conn, endpoint_id, Notice(business_id, "webhook.test", {}), utc_now())
