"""The events of a debit as `gullak explain` shows them: how much of what, at which price."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import typer
from sqlalchemy import Connection

from metering.ids import EntryId
from metering.ledger.entry import Entry
from metering.usage.entry_usage import ExplainedEvent, explain_events, sharing
from worker.cli.show import print_table


@dataclass(frozen=True, slots=True)
class EntryUsage:
    """Up to a limit of the events of an entry; `shared_with`: other entries made of the same."""

    entry: Entry
    events: Sequence[ExplainedEvent]
    shared_with: Sequence[EntryId]

    @classmethod
    def of(cls, conn: Connection, entry: Entry, limit: int) -> "EntryUsage":
        """Read the usage of an entry; of one that is no debit for usage there is none."""
        return cls(entry, explain_events(conn, entry, page=limit), sharing(conn, entry))

    def as_json(self) -> dict[str, object]:
        """Return what is added to the entry's own fields."""
        return {
            "shared_with": list(self.shared_with),
            "usage": [
                {
                    "event_id": explained.event.event_id,
                    "event_name": explained.event.event_name,
                    "event_at": explained.event.event_at,
                    "cost_minor": explained.event.cost_minor,
                    "adds_up": explained.adds_up,
                    "lines": [
                        {
                            "meter_id": line.meter_id,
                            "meter_name": line.meter_name,
                            "unit": line.unit,
                            "quantity": line.quantity,
                            "unit_price_minor": line.unit_price,
                            "cost_minor": line.cost,
                        }
                        for line in explained.lines
                    ],
                }
                for explained in self.events
            ],
        }

    def print(self, *, wide: bool) -> None:
        """Print a line for each event and meter, and what has to be known about them."""
        if self.entry.kind != "usage":
            return
        columns = ("event_id", "meter", "quantity#", "unit price#", "cost (minor)#", "at")
        rows = [row for explained in self.events for row in _rows(explained)]
        print_table((*columns, "event name", "unit", "meter_id"), rows, "events", wide=wide)
        for remark in self._remarks():
            typer.echo(remark)

    def _remarks(self) -> Iterator[str]:
        if not self.events and self.entry.event_count:
            yield "the rows of its events are older than the retention"
        elif len(self.events) < self.entry.event_count and not self.shared_with:
            yield f"these are the newest {len(self.events)}; --limit shows more"
        if self.shared_with:
            others = ", ".join(self.shared_with)
            yield f"its batch was split: these events are also those of {others}"
        if not all(explained.adds_up for explained in self.events):
            yield (
                "a meter or a price has changed since: quantities and prices are those of today,"
                " the cost of an event is what was charged"
            )


def _rows(explained: ExplainedEvent) -> Iterator[tuple[object, ...]]:
    """Give a row per line; one for the whole event where its lines do not make its cost."""
    event = explained.event
    head = (event.event_id,)
    if not explained.adds_up or not explained.lines:
        yield (*head, None, None, None, event.cost_minor, event.event_at, event.event_name)
        return
    for line in explained.lines:
        name, unit = line.meter_name, line.unit
        amounts = (line.quantity, line.unit_price, line.cost)
        yield (*head, name, *amounts, event.event_at, event.event_name, unit, line.meter_id)
