"""`gullak events`: where events are, and from a debit to its events and back."""

from typing import Annotated, Final

import typer

from metering.ids import CustomerId, EntryId
from metering.usage.find import FoundEvent, find_event
from metering.usage.list import list_events
from metering.usage.walk import EventFilter
from worker.cli.options import AsJson, Business, Limit, Wide
from worker.cli.show import print_json, print_table
from worker.cli.target import DataDir, business_of, open_target

_FIELDS: Final = (
    *("event_id", "customer_id", "event_name", "event_at", "metadata", "status"),
    *("cost_minor", "currency", "entry_id", "reason", "detail"),
)


def events(
    *,
    entry: Annotated[
        str | None, typer.Option(help="Only those that this debit is made of.", metavar="ENTRY")
    ] = None,
    customer: Annotated[
        str | None, typer.Option("--customer", "-c", help="Only of this customer.", metavar="ID")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only of this event name.")] = None,
    event_id: Annotated[
        str | None, typer.Option("--event-id", help="Only this one: its cost and its entry.")
    ] = None,
    limit: Limit = 20,
    wide: Wide = False,
    business: Business = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show where events are: buffered, posted with cost and entry, or refused; newest first."""
    wanted = EventFilter(
        entry_id=None if entry is None else EntryId(entry),
        customer_id=None if customer is None else CustomerId(customer),
        event_name=name,
    )
    with open_target(data_dir) as target:
        with target.transaction() as conn:
            business_id = business_of(conn, business)
        if event_id is None:
            found = list_events(target.transaction, target.buffer, business_id, wanted, page=limit)
        else:
            found = [find_event(target.transaction, target.buffer, business_id, event_id)]
    if as_json:
        print_json([{name: getattr(event, name) for name in _FIELDS} for event in found])
        return
    columns = ("event_id", "status", "cost (minor)#", "currency", "entry_id", "at")
    more = ("event name", "customer_id", "reason", "detail~")
    print_table((*columns, *more), [_row(event) for event in found], wide=wide)


def _row(event: FoundEvent) -> tuple[object, ...]:
    return (
        event.event_id,
        event.status,
        event.cost_minor,
        event.currency,
        event.entry_id,
        event.event_at,
        event.event_name,
        event.customer_id,
        event.reason,
        event.detail,
    )
