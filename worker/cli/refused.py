"""`gullak refused` and `gullak replay`: events that could not be charged."""

from collections.abc import Sequence
from typing import Annotated, Final

import typer
from sqlalchemy import Connection
from typer import Argument, Option

from metering.errors import FieldProblem, InvalidInputError, NotFoundError
from metering.ids import BusinessId, RefusalId
from metering.usage.refused import (
    NOTE_CHARS_MAX,
    RefusedEvent,
    Selection,
    dismiss,
    get_refused,
    refused_events,
    resolved_events,
)
from metering.usage.refused import replay as replay_refused
from worker.cli.command import Group, Tenant, command
from worker.cli.options import Limit
from worker.cli.page import Page, Sentence, View, columns
from worker.cli.target import Target

app = Group(runs_alone=True)

OfReason = Annotated[str | None, Option("--reason", help="Only this reason: no_price, …")]
OfEvent = Annotated[str | None, Option("--event-id", help="Only this event.")]


_REFUSED: Final = columns("""
    id# = refusal_id, refused_at, reason, event_id, customer_id, resolution,
    resolution_note~, detail~, business_id
""")
_RESOLUTION: Final = ("resolution", "resolution_note")


def _print(found: Sequence[RefusedEvent], view: View) -> None:
    """Print how events were resolved only if they were."""
    is_resolved = any(event.resolution for event in found)
    shown = [each for each in _REFUSED if is_resolved or each.source not in _RESOLUTION]
    view.table(shown, found)
    if len(found) == view.limit:
        typer.echo(f"these are the first {view.limit}; --limit shows more")


@app.callback()
@command(Page(_print))
def refused(
    conn: Connection,
    business: BusinessId | None,
    reason: OfReason = None,
    event_id: OfEvent = None,
    resolved: Annotated[
        bool, Option("--resolved", help="Only resolved ones, newest first.")
    ] = False,
    limit: Limit = 100,
) -> list[RefusedEvent]:
    """List the refused events that wait, oldest first."""
    find = resolved_events if resolved else refused_events
    selection = Selection(business_id=business, reason=reason, event_id=event_id)
    return find(conn, selection, page=limit)


@app.add("dismiss")
def dismiss_events(
    tenant: Tenant,
    reason: Annotated[str, Option(help="Why: it is kept.")],
    ids: Annotated[
        list[int] | None, Argument(help="Ids of refused events.", metavar="[ID]…")
    ] = None,
    of_reason: Annotated[
        str | None, Option("--refused-for", help="All that were refused for this reason.")
    ] = None,
    event_id: OfEvent = None,
) -> Sentence:
    """Take refused events off the list, for good; they are kept, with the reason."""
    if not (ids or of_reason or event_id):
        raise InvalidInputError(
            FieldProblem("id", "is missing: name refused events, --event-id or --refused-for")
        )
    if not reason.strip() or len(reason) > NOTE_CHARS_MAX:
        raise InvalidInputError(FieldProblem("reason", f"has 1 to {NOTE_CHARS_MAX} characters"))
    selection = Selection(reason=of_reason, event_id=event_id)
    numbers = [RefusalId(number) for number in ids] if ids else None
    for number in numbers or ():
        tenant.run(get_refused, number)
    dismissed = tenant.run(dismiss, reason, selection, numbers)
    if event_id is not None and not dismissed:
        _check_event(tenant.conn, tenant.business, event_id)
    return Sentence({"dismissed": dismissed}, f"{dismissed} dismissed")


@command()
def replay(
    target: Target, business: BusinessId | None, reason: OfReason = None, event_id: OfEvent = None
) -> Sentence:
    """Send refused events again, after their cause is fixed."""
    selection = Selection(business_id=business, reason=reason, event_id=event_id)
    sent = replay_refused(target.transaction, target.buffer, selection)
    if event_id is not None and not sent:
        with target.transaction() as conn:
            _check_event(conn, business, event_id)
    return Sentence({"sent": sent}, f"{sent} events were sent again")


def _check_event(conn: Connection, business: BusinessId | None, event_id: str) -> None:
    """Raise NotFoundError if no event of this id was ever refused."""
    wanted = Selection(business_id=business, event_id=event_id)
    if not (refused_events(conn, wanted, page=1) or resolved_events(conn, wanted, page=1)):
        raise NotFoundError("refused event", event_id)
