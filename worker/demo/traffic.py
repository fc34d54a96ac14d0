"""The demo's traffic: planned beforehand, so what it must cost is known to the last decimal."""

import csv
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Final, NamedTuple

from metering.errors import FieldProblem, InvalidInputError
from worker.demo.prices import LARGE, PRICE_LIST, REQUEST, Usage

CUSTOMERS: Final = 40
NOBODY: Final = -1  # stands for a customer that does not exist
UNMETERED: Final = "llm.health_check"
SEED: Final = 20_231_116
LARGE_SHARE: Final = 0.2
# One event in so many is an extra of this kind, copied from a regular event.
_EXTRAS: Final = {
    "resent": 40,
    "conflict": 1000,
    "unmetered": 100,
    "unknown": 400,
    "unreadable": 400,
}
_REPETITIONS: Final = ("resent", "conflict")  # they come after the event that they repeat
_SUMMED: Final = tuple(item.summed for item in PRICE_LIST if item.summed)
_TRACE_COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MICROSECOND_DIGITS: Final = 26  # of `2023-11-16 18:17:03.979960`: further digits are cut off

Row = tuple[datetime, int, int]  # of a trace


class Planned(NamedTuple):
    """An event to send; `customer` is a number, `at_s` its time in seconds after the start."""

    event_id: str
    customer: int
    name: str
    at_s: float
    metadata: dict[str, str | int | float | bool]


@dataclass(slots=True)
class Tally:
    """What must become of the events that were sent, judged by their content."""

    sent: int = 0
    posted: int = 0
    unmetered: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    usage: dict[int, Usage] = field(default_factory=lambda: defaultdict(Usage))
    _seen: dict[str, Planned] = field(default_factory=dict)

    def add(self, event: Planned) -> None:
        """Judge one more event. Those of one customer come in the order of their sending."""
        self.sent += 1
        known = self._seen.get(event.event_id)
        if known is None:
            self._seen[event.event_id] = event
            self._first(event)
        elif known == event:
            self.repeated += 1
        else:
            self.refused["conflict"] += 1

    def _first(self, event: Planned) -> None:
        if event.customer == NOBODY:
            self.refused["unknown_customer"] += 1
        elif event.name != REQUEST:
            self.posted += 1
            self.unmetered += 1
        elif any(type(event.metadata.get(key)) is not int for key in _SUMMED):
            self.refused["bad_quantity"] += 1
        else:
            self.posted += 1
            self.usage[event.customer].add(event.metadata)

    def cost(self, currency_of: Sequence[str]) -> list[Fraction]:
        """Return what each customer's use costs, in minor units of its currency."""
        return [self.usage[number].cost(code) for number, code in enumerate(currency_of)]


def tally_of(events: Iterable[Planned]) -> Tally:
    """Judge all of `events`."""
    tally = Tally()
    for event in events:
        tally.add(event)
    return tally


def plan_invented(events: int, span_s: float) -> list[Planned]:
    """Return `events` events over `span_s` seconds: invented, but the same ones every time."""
    numbers = random.Random(SEED)  # noqa: S311 - reproducible, not secret
    regular = events - sum(events // one_in for one_in in _EXTRAS.values())
    return _with_extras(_invented(numbers, regular, span_s), numbers, events)


def _invented(numbers: random.Random, events: int, span_s: float) -> list[Planned]:
    return [
        Planned(
            f"req-{number}",
            numbers.randrange(CUSTOMERS),
            REQUEST,
            number / events * span_s,
            {
                "model": LARGE if numbers.random() < LARGE_SHARE else "small",
                "input_tokens": min(8_000, 1 + int(numbers.lognormvariate(6.5, 1.0))),
                "output_tokens": min(2_000, 1 + int(numbers.lognormvariate(4.5, 1.0))),
            },
        )
        for number in range(events)
    ]


def plan_trace(rows: Sequence[Row], events: int) -> list[Planned]:
    """Return an event per row, over and over until there are `events`, and the extras on top.

    The spacing is that of the file; its last row is now.
    """
    numbers = random.Random(SEED)  # noqa: S311 - reproducible, not secret
    last = rows[-1][0]
    regular = [
        Planned(
            f"row-{number}",
            number % CUSTOMERS,
            REQUEST,
            (at - last).total_seconds(),
            {"input_tokens": context, "output_tokens": generated},
        )
        for number, (at, context, generated) in enumerate(islice(cycle(rows), events))
    ]
    return _with_extras(regular, numbers, events)


def read_trace(path: Path) -> list[Row]:
    """Read a CSV of TIMESTAMP, ContextTokens, GeneratedTokens; rows in the order of the file.

    Raises:
        InvalidInputError: the file has other columns, no rows, or a row that cannot be read.

    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not set(_TRACE_COLUMNS) <= set(reader.fieldnames or ()):
            raise InvalidInputError(
                FieldProblem(path.name, f"has not the columns {', '.join(_TRACE_COLUMNS)}")
            )
        rows = [_trace_row(path, reader.line_num, row) for row in reader]
    if not rows:
        raise InvalidInputError(FieldProblem(path.name, "has no rows"))
    return rows


def _trace_row(path: Path, line: int, row: dict[str, str]) -> Row:
    try:
        at, context, generated = (row[name] for name in _TRACE_COLUMNS)
        moment = datetime.fromisoformat(at[:_MICROSECOND_DIGITS]).replace(tzinfo=UTC)
        return moment, int(context), int(generated)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(FieldProblem(f"{path.name} line {line}", str(error))) from None


def _with_extras(regular: list[Planned], numbers: random.Random, events: int) -> list[Planned]:
    """Strew in the extras, each close to the event that it is copied from."""
    placed = [*enumerate(regular), *_extras(regular, numbers, events)]
    return [event for _, event in sorted(placed, key=lambda pair: pair[0])]


def _extras(
    regular: list[Planned], numbers: random.Random, events: int
) -> Iterator[tuple[float, Planned]]:
    """Yield each extra with its place."""
    for kind, one_in in _EXTRAS.items():
        for number in range(events // one_in):
            index = numbers.randrange(len(regular))
            repeats = kind in _REPETITIONS
            place = numbers.uniform(index, len(regular)) if repeats else index
            yield place + 0.5, _extra(kind, number, regular[index])


def _extra(kind: str, number: int, model: Planned) -> Planned:
    match kind:
        case "resent":
            return model
        case "conflict":
            return model._replace(metadata={**model.metadata, "input_tokens": 999_999})
        case "unmetered":
            return model._replace(event_id=f"check-{number}", name=UNMETERED)
        case "unknown":
            return model._replace(event_id=f"nobody-{number}", customer=NOBODY)
        case _:
            spoilt = {**model.metadata, "output_tokens": "many"}
            return model._replace(event_id=f"unreadable-{number}", metadata=spoilt)
