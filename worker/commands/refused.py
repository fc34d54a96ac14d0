"""`gullak refused` and `gullak replay`: events that could not be charged."""

from typing import Annotated

import typer

from metering.debit.refused import Selection, refused_events
from metering.debit.refused import replay as replay_refused
from worker.commands.options import AsJson, Limit
from worker.commands.show import print_json, print_table
from worker.commands.target import DataDir, Target, business_of, open_target

Reason = Annotated[str | None, typer.Option("--reason", help="Only this reason: no_price, …")]
EventId = Annotated[str | None, typer.Option("--event-id", help="Only this event.")]
AnyBusiness = Annotated[
    str | None, typer.Option("--business", "-b", help="Only this business.", metavar="ID")
]


def _selection(
    target: Target, business: str | None, reason: str | None, event_id: str | None = None
) -> Selection:
    if business is None:
        return Selection(reason=reason, event_id=event_id)
    with target.transaction() as conn:
        business_id = business_of(conn, business)
    return Selection(business_id=business_id, reason=reason, event_id=event_id)


def refused(
    *,
    reason: Reason = None,
    business: AnyBusiness = None,
    event_id: EventId = None,
    limit: Limit = 100,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the events that wait as dead letters, oldest first."""
    with open_target(data_dir) as target:
        selection = _selection(target, business, reason, event_id)
        with target.transaction() as conn:
            found = refused_events(conn, selection, page=limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (r.refused_at, r.reason, r.event_id, r.customer_id, r.detail, r.business_id) for r in found
    ]
    print_table(("refused_at", "reason", "event_id", "customer_id", "detail~", "business_id"), rows)
    if len(found) == limit:
        typer.echo(f"these are the oldest {limit}; --limit shows more")


def replay(
    *,
    reason: Reason = None,
    business: AnyBusiness = None,
    event_id: EventId = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Send dead letters through the path again, after their cause is fixed."""
    with open_target(data_dir) as target:
        selection = _selection(target, business, reason, event_id)
        sent = replay_refused(target.transaction, target.buffer, selection)
    if as_json:
        print_json({"sent": sent})
    else:
        typer.echo(f"{sent} events were sent again")
