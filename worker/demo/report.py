"""The result of a demo: one record, from which the table and the JSON are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.demo.kills import Kill
from worker.demo.prices import plain_fraction, price_list_json


class Line(NamedTuple):
    """One line of the account."""

    name: str
    expected: int | str
    found: int | str
    ok: bool


def line(name: str, expected: int | str | Fraction, found: int | str | Fraction) -> Line:
    """Return a line that holds if both are equal. A fraction is written in full."""
    return Line(name, _in_full(expected), _in_full(found), expected == found)


def _in_full(value: int | str | Fraction) -> int | str:
    return plain_fraction(value) if isinstance(value, Fraction) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How the demo went. `over_http`: the events that did not go straight to Redis.

    `traffic_s`: from the first event until the last was drained.
    """

    lines: Sequence[Line]
    kills: Sequence[Kill]
    events: int
    over_http: int
    traffic_s: float
    duration_s: float
    trace: str | None
    customers: Sequence[tuple[str, str]]  # id, currency

    @property
    def ok(self) -> bool:
        """Whether every line holds."""
        return all(line.ok for line in self.lines)

    def as_json(self) -> dict[str, Any]:
        """Return the record for a program. Amounts are minor units, exact ones as decimal text."""
        return {
            "ok": self.ok,
            "lines": [each._asdict() for each in self.lines],
            "kills": [each.as_json() for each in self.kills],
            "events": self.events,
            "over_http": self.over_http,
            "traffic_s": round(self.traffic_s, 3),
            "events_per_s": round(self.events / self.traffic_s, 1),
            "duration_s": round(self.duration_s, 3),
            "trace": self.trace,
            "price_list": price_list_json(),
            "customers": [{"customer_id": who, "currency": code} for who, code in self.customers],
        }

    def print_to(self, console: Console) -> None:
        """Print the account as a table, and the figures of the run."""
        table = Table(title="reconciliation", title_justify="left")
        for name in ("", "expected", "found", "holds"):
            table.add_column(name, justify="right" if name else "left", overflow="fold")
        for each in self.lines:
            mark = Text("yes", "green") if each.ok else Text("NO", "bold red")
            table.add_row(each.name, _text(each.expected), _text(each.found), mark)
        console.print(table)
        rate = self.events / self.traffic_s
        for fact in (
            f"whole run: {self.duration_s:.1f} s",
            f"traffic: {self.traffic_s:.1f} s, {rate:,.0f} events/s",
            f"killed: {'; '.join(map(str, self.kills)) or 'nothing'}",
        ):
            console.print(fact, highlight=False)
        broken = sum(not each.ok for each in self.lines)
        verdict = f"{broken} lines do NOT hold" if broken else "every line holds"
        console.print(Text(verdict, "bold red" if broken else "bold green"))


def _text(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:,}"
