"""`gullak webhook`: where deliveries are, those that were given up, and sending again."""

from datetime import datetime
from typing import Annotated, Final

import typer

from metering.ids import EndpointId, WebhookEventId
from metering.webhook.dead_letter import REPLAY_MAX, dead_letters
from metering.webhook.dead_letter import replay as replay_deliveries
from metering.webhook.deliveries import Delivery, DeliveryState, page_of_deliveries
from worker.cli.options import AsJson, Business, Limit, Wide, moment
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, business_of, open_target

_COLUMNS: Final = (
    "type",
    "status",
    "attempts#",
    "next attempt",
    "last answer~",
    "event",
    "endpoint",
    "url",
    "occurred_at",
    "last attempt",
)

app = typer.Typer(help="Deliveries of webhooks.", no_args_is_help=True)


@app.command("dead")
def dead(
    *,
    business: Business = None,
    limit: Limit = 100,
    wide: Wide = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List deliveries that were given up, oldest event first."""
    with open_target(data_dir) as target, target.transaction() as conn:
        found = dead_letters(conn, business_of(conn, business), limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            d.occurred_at,
            d.type,
            d.webhook_event_id,
            d.endpoint_id,
            d.status_code,
            d.error,
            d.attempt,
        )
        for d in found
    ]
    columns = ("occurred_at", "type", "event", "endpoint", "status#", "error~", "attempts#")
    print_table(columns, rows, wide=wide)


@app.command("list")
def list_all(
    *,
    endpoint: Annotated[str | None, typer.Option(help="Only to this one.", metavar="ID")] = None,
    status: Annotated[
        DeliveryState,
        typer.Option(help="failing: pending, and tried in vain; undelivered: pending or dead."),
    ] = "undelivered",
    business: Business = None,
    limit: Limit = 100,
    wide: Wide = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List deliveries with their last error, newest event first; by default what did not arrive."""
    with open_target(data_dir) as target, target.transaction() as conn:
        found = page_of_deliveries(
            conn,
            business_of(conn, business),
            endpoint_id=None if endpoint is None else EndpointId(endpoint),
            state=status,
            page=limit,
        )
    if as_json:
        print_json(found)
        return
    print_table(_COLUMNS, [_row(delivery) for delivery in found], wide=wide)


def _row(d: Delivery) -> tuple[object, ...]:
    answer = d.last_error if d.last_status_code is None else f"answered {d.last_status_code}"
    return (
        d.type,
        d.status,
        d.attempts,
        d.next_attempt_at,
        answer,
        d.webhook_event_id,
        d.endpoint_id,
        d.url,
        d.occurred_at,
        d.last_attempt_at,
    )


@app.command("replay")
def replay(
    *,
    event: Annotated[str | None, typer.Option(help="Only this event.", metavar="ID")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only to this one.", metavar="ID")] = None,
    since: Annotated[datetime | None, moment("--since", "What happened from this time on.")] = None,
    until: Annotated[datetime | None, moment("--until", "What happened before this time.")] = None,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make deliveries due again: of an event, to an endpoint, or since a time."""
    with open_target(data_dir) as target, target.transaction() as conn:
        count = replay_deliveries(
            conn,
            business_id=business_of(conn, business),
            webhook_event_id=None if event is None else WebhookEventId(event),
            endpoint_id=None if endpoint is None else EndpointId(endpoint),
            since=since,
            until=until,
        )
    if as_json:
        print_json({"due": count})
        return
    more = "; there may be more: run it again" if count >= REPLAY_MAX else ""
    typer.echo(f"{count} deliveries are due again{more}")
