"""`gullak refused` and `gullak replay`: events that could not be charged."""

from typing import Annotated

import typer

from metering.errors import FieldProblem, InvalidInputError
from metering.ids import RefusalId
from metering.usage.refused import (
    NOTE_CHARS_MAX,
    RefusedEvent,
    Selection,
    dismiss,
    refused_events,
    resolved_events,
)
from metering.usage.refused import replay as replay_refused
from worker.cli.options import AsJson, Business, Limit
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, Target, business_of, open_target

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


app = typer.Typer(help="Events that wait as dead letters.", invoke_without_command=True)


@app.callback()
def refused(
    context: typer.Context,
    *,
    reason: Reason = None,
    business: AnyBusiness = None,
    event_id: EventId = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Those that wait no more, newest first.")
    ] = False,
    limit: Limit = 100,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the events that wait as dead letters, oldest first."""
    if context.invoked_subcommand:
        return
    with open_target(data_dir) as target:
        selection = _selection(target, business, reason, event_id)
        with target.transaction() as conn:
            if resolved:
                found = resolved_events(conn, selection, page=limit)
            else:
                found = refused_events(conn, selection, page=limit)
    if as_json:
        print_json(found)
        return
    over = ("resolution", "resolution_note~") if resolved else ()
    columns = ("id#", "refused_at", "reason", "event_id", "customer_id", *over, "detail~")
    print_table((*columns, "business_id"), [_row(one, with_end=resolved) for one in found])
    if len(found) == limit:
        typer.echo(f"these are the first {limit}; --limit shows more")


def _row(one: RefusedEvent, *, with_end: bool) -> tuple[object, ...]:
    over = (one.resolution, one.resolution_note) if with_end else ()
    what = (one.refusal_id, one.refused_at, one.reason, one.event_id, one.customer_id)
    return (*what, *over, one.detail, one.business_id)


@app.command("dismiss")
def dismiss_events(
    *,
    ids: Annotated[
        list[int] | None, typer.Argument(help="Ids of dead letters.", metavar="[ID]…")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why: it is kept.")],
    of_reason: Annotated[
        str | None, typer.Option("--refused-for", help="All that were refused for this.")
    ] = None,
    event_id: EventId = None,
    business: Business = None,
    data_dir: DataDir = None,
) -> None:
    """Take dead letters off the list, for good; they are kept, with the reason."""
    if not (ids or of_reason or event_id):
        raise InvalidInputError(
            FieldProblem("id", "is missing: name dead letters, --event-id or --refused-for")
        )
    if not reason.strip() or len(reason) > NOTE_CHARS_MAX:
        raise InvalidInputError(FieldProblem("reason", f"has 1 to {NOTE_CHARS_MAX} characters"))
    selection = Selection(reason=of_reason, event_id=event_id)
    numbers = [RefusalId(number) for number in ids] if ids else None
    with open_target(data_dir) as target, target.transaction() as conn:
        gone = dismiss(conn, business_of(conn, business), reason, selection, numbers)
    typer.echo(f"{gone} dismissed")


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
