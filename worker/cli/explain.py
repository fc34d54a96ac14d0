"""`gullak explain`: an entry with its lots and its events: how much of what, at which price."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import typer

from metering.ids import EntryId
from metering.ledger.entry import Entry
from metering.ledger.history import get_entry
from metering.ledger.lots.listing import Allocations, allocations_of
from metering.ledger.reversals import Reversal, reversals_of
from metering.usage.entry_usage import NOTE, ExplainedEvent, explain_events, sharing
from worker.cli.command import Tenant, command
from worker.cli.options import EntryArgument, Limit
from worker.cli.page import Page, View, columns
from worker.cli.show import print_table


def _what(entry: Entry | Reversal) -> str:
    return f"{entry.kind} {'credit' if entry.is_credit else 'debit'}"


_ENTRY: Final = columns(
    """
        customer_id, what, amount = $amount_minor, balance before = $before_minor,
        balance after = $after_minor, reason, reference, idempotency key = idempotency_key,
        batch = batch_id, events, carried in (minor) = carried_in,
        exact cost (minor) = exact_cost, carried out (minor) = carried_out, version, created_at
    """,
    what=_what,
    carried_in=lambda entry: entry.remainder_before if entry.kind == "usage" else None,
    carried_out=lambda entry: entry.remainder_after if entry.kind == "usage" else None,
    events=lambda entry: entry.event_count or None,
)


@dataclass(frozen=True, slots=True)
class Explained:
    """An entry, its lots, its reversals, and up to a limit of its events.

    `shared_with`: other entries made of the same events. An entry that is no debit for usage has
    no events.
    """

    entry: Entry
    lots: Allocations
    reversed_by: Sequence[Reversal]
    events: Sequence[ExplainedEvent]
    shared_with: Sequence[EntryId]

    def as_json(self) -> dict[str, object]:
        """Return the fields of the entry, and the rest beside them."""
        return {
            **self.entry._asdict(),
            "lots": self.lots.items,
            "unpaid_minor": self.lots.unpaid_minor,
            "reversed_by": self.reversed_by,
            "shared_with": self.shared_with,
            "usage": [_usage(explained) for explained in self.events],
        }

    def remarks(self) -> Iterator[str]:
        """Yield what a reader has to know about the events."""
        if not self.events and self.entry.event_count:
            yield "the rows of its events are older than the retention"
        elif len(self.events) < self.entry.event_count and not self.shared_with:
            yield f"these are the newest {len(self.events)}; --limit shows more"
        if self.shared_with:
            others = ", ".join(self.shared_with)
            yield f"its batch was split: these events are also those of {others}"
        if not all(explained.adds_up for explained in self.events):
            yield f"* {NOTE}; the row without a meter shows that cost"


def _usage(explained: ExplainedEvent) -> dict[str, object]:
    event = explained.event
    names = ("event_id", "event_name", "event_at", "cost_minor")
    lines = [
        {
            "meter_id": line.meter_id,
            "meter_name": line.meter_name,
            "unit": line.unit,
            "quantity": line.quantity,
            "unit_price_minor": line.unit_price,
            "cost_minor": line.cost,
        }
        for line in explained.lines
    ]
    own = {name: getattr(event, name) for name in names}
    how = {"adds_up": explained.adds_up, "note": explained.note}
    return {**own, **how, "lines": lines}


def _rows(explained: ExplainedEvent) -> Iterator[tuple[object, ...]]:
    """Yield a row per line, after one for the whole event if they do not add up to its cost.

    Such lines are marked with an asterisk.
    """
    event, mark = explained.event, "" if explained.adds_up else "* "
    if not explained.adds_up or not explained.lines:
        when = (event.event_at, event.event_name, None, None)
        yield (event.event_id, None, None, None, event.cost_minor, *when)
    for line in explained.lines:
        about = (event.event_at, event.event_name, line.unit, line.meter_id)
        priced = (f"{mark}{line.meter_name}", line.quantity, line.unit_price, line.cost)
        yield (event.event_id, *priced, *about)


def _print(found: Explained, view: View) -> None:
    entry = found.entry
    view.record(_ENTRY, entry, entry.entry_id)
    lots: list[tuple[str, str, int]] = [*found.lots.items]
    if found.lots.unpaid_minor:
        lots.append(("none yet", "debt", found.lots.unpaid_minor))
    rows = [(lot, source, view.money(minor, entry.currency)) for lot, source, minor in lots]
    print_table(("lot_id", "source", "amount#"), rows, "lots")
    if found.reversed_by:
        reversals = [
            (each.entry_id, _what(each), view.money(each.amount_minor, entry.currency))
            for each in found.reversed_by
        ]
        print_table(("entry_id", "what", "amount#"), reversals, "reversed by")
    if entry.kind != "usage":
        return
    columns = ("event_id", "meter", "quantity#", "unit price#", "cost (minor)#", "at")
    events = [row for explained in found.events for row in _rows(explained)]
    print_table((*columns, "event name", "unit", "meter_id"), events, "events", wide=view.wide)
    for remark in found.remarks():
        typer.echo(remark)


@command(Page(_print, has_wide=True))
def explain(tenant: Tenant, entry: EntryArgument, limit: Limit = 20) -> Explained:
    """Explain an entry: its reason, its events and its lots."""
    conn, found = tenant.conn, tenant.run(get_entry, entry)
    events = explain_events(conn, found, page=limit)
    reversals = reversals_of(conn, [found]).get(entry, ())
    return Explained(found, allocations_of(conn, found), reversals, events, sharing(conn, found))
