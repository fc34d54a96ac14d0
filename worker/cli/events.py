"""`gullak events`: where events are, and from a debit to its events and back."""

from typing import Annotated, Final

from typer import Option

from metering.ids import BusinessId, EntryId
from metering.usage.find import find_event
from metering.usage.list import list_events
from metering.usage.walk import EventFilter
from worker.cli.command import command
from worker.cli.options import Limit, OfCustomer
from worker.cli.page import fields, table
from worker.cli.target import Target

_FIELDS: Final = """
    event_id, customer_id, event_name, event_at, metadata, status, cost_minor, currency, entry_id,
    reason, detail
"""


@command(
    table(
        """
            event_id, status, cost (minor)# = cost_minor, currency, entry_id, at = event_at,
            event name = event_name, customer_id, reason, detail~
        """,
    )
)
def events(
    target: Target,
    business: BusinessId,
    entry: Annotated[
        EntryId | None, Option(help="Only those of this debit.", metavar="ENTRY")
    ] = None,
    customer: OfCustomer = None,
    name: Annotated[str | None, Option(help="Only of this event name.")] = None,
    event_id: Annotated[
        str | None, Option("--event-id", help="Only this one: its cost and its entry.")
    ] = None,
    limit: Limit = 20,
) -> list[dict[str, object]]:
    """Show events: buffered, posted with cost and entry, or refused.

    The newest are first.
    """
    if event_id is None:
        wanted = EventFilter(entry_id=entry, customer_id=customer, event_name=name)
        found = list_events(target.transaction, target.buffer, business, wanted, page=limit)
    else:
        found = [find_event(target.transaction, target.buffer, business, event_id)]
    return [fields(event, _FIELDS) for event in found]
