"""`gullak webhook`: deliveries, dead letters, and sending again."""

from datetime import datetime
from typing import Annotated

from typer import Option

from metering.ids import EndpointId, WebhookEventId
from metering.webhook.dead_letter import REPLAY_MAX, DeadLetter, dead_letters
from metering.webhook.dead_letter import replay as replay_deliveries
from metering.webhook.deliveries import Delivery, DeliveryState, check_event, page_of_deliveries
from metering.webhook.endpoints import get_endpoint
from worker.cli.command import Group, Tenant
from worker.cli.options import Limit, moment
from worker.cli.page import Sentence, table

app = Group()

ToEndpoint = Annotated[
    EndpointId | None, Option("--endpoint", help="Only to this one.", metavar="ID")
]


@app.add(
    "dead",
    table(
        """
            occurred_at, type, event = webhook_event_id, endpoint = endpoint_id,
            status# = status_code, error~, attempts# = attempt
        """,
    ),
)
def dead(tenant: Tenant, limit: Limit = 100) -> list[DeadLetter]:
    """List dead letters: deliveries that were given up; oldest event first."""
    return tenant.run(dead_letters, limit)


def _answer(delivery: Delivery) -> str | None:
    status = delivery.last_status_code
    return delivery.last_error or (None if status is None else f"answered {status}")


@app.add(
    "list",
    table(
        """
            type, status, attempts#, next attempt = next_attempt_at, last answer~ = last_answer,
            event = webhook_event_id, endpoint = endpoint_id, url, occurred_at,
            last attempt = last_attempt_at
        """,
        last_answer=_answer,
    ),
)
def list_all(
    tenant: Tenant,
    endpoint: ToEndpoint = None,
    status: Annotated[
        DeliveryState,
        Option(help="failing: pending after a failure; undelivered: pending or dead."),
    ] = "undelivered",
    limit: Limit = 100,
) -> list[Delivery]:
    """List deliveries with their last error, newest event first; by default the undelivered."""
    return tenant.run(page_of_deliveries, endpoint_id=endpoint, state=status, page=limit)


@app.add("replay")
def replay(
    tenant: Tenant,
    event: Annotated[WebhookEventId | None, Option(help="Only this event.", metavar="ID")] = None,
    endpoint: ToEndpoint = None,
    since: Annotated[
        datetime | None, moment("--since", "Events that happened from this time on.")
    ] = None,
    until: Annotated[
        datetime | None, moment("--until", "Events that happened before this time.")
    ] = None,
) -> Sentence:
    """Make deliveries due again: of an event, to an endpoint, or since a time."""
    if endpoint is not None:
        tenant.run(get_endpoint, endpoint)
    if event is not None:
        tenant.run(check_event, event)
    count = replay_deliveries(
        tenant.conn,
        business_id=tenant.business,
        webhook_event_id=event,
        endpoint_id=endpoint,
        since=since,
        until=until,
    )
    more = "; there may be more: run it again" if count >= REPLAY_MAX else ""
    return Sentence({"due": count}, f"{count} deliveries are due again{more}")
