"""How a command prints its result: tables, records, fields and sentences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import typer

from worker.cli.show import SHORT, money, print_record, print_table


class Column(NamedTuple):
    """A column. An amount of minor units is shown in both units, in the record's `currency`."""

    head: str
    source: str | Callable[[Any], object]
    is_amount: bool = False


Columns = Sequence[Column]


def columns(text: str, **computed: Callable[[Any], object]) -> Columns:
    """Read columns from a text, with a comma between two of them.

    name            the field of this name
    head = field    a field under another head
    head = $field   an amount

    A field in `computed` is a function of the record.
    """
    return [_column(part.strip(), computed) for part in text.split(",")]


def _column(part: str, computed: Mapping[str, Callable[[Any], object]]) -> Column:
    head, _, source = part.partition(" = ")
    name = source.removeprefix("$") or head.rstrip("#~")
    return Column(head, computed.get(name, name), is_amount=source.startswith("$"))


def fields(record: object, names: str) -> dict[str, object]:
    """Return some fields of a record, as JSON shows them; `names` is a text for `columns`."""
    plain = (name.strip().rstrip("#~") for name in names.split(","))
    return {name: getattr(record, name) for name in plain}


class Sentence(NamedTuple):
    """A result with a text for people and a record for programs."""

    record: Any
    text: str

    def as_json(self) -> Any:
        """Return the record."""
        return self.record


@dataclass(frozen=True, slots=True)
class View:
    """How the user wants to see a result. `limit` is 0 if the command has no `--limit`."""

    currencies: Mapping[str, int]
    wide: bool
    limit: int

    def row(self, columns: Columns, record: object) -> list[object]:
        """Return the cells of a record."""
        return [self._cell(column, record) for column in columns]

    def _cell(self, column: Column, record: object) -> object:
        source = column.source
        if column.is_amount:
            return self.money(_of(record, str(source)), _of(record, "currency"))
        return _of(record, source) if isinstance(source, str) else source(record)

    def money(self, amount_minor: int, currency: str) -> str:
        """Return an amount in both units: `1230 (12.30 USD)`."""
        return money(amount_minor, currency, self.currencies)

    def table(
        self, columns: Columns, records: Sequence[object], title: str = "", **how: bool
    ) -> None:
        """Print a line for each record."""
        rows = [self.row(columns, record) for record in records]
        print_table([column.head for column in columns], rows, title, **how)

    def record(self, columns: Columns, record: object, title: str = "") -> None:
        """Print a line for each column."""
        names = (column.head.rstrip("#~") for column in columns)
        print_record(dict(zip(names, self.row(columns, record), strict=True)), title)


@dataclass(frozen=True, slots=True)
class Page:
    """Prints a result on a terminal; `has_wide`: it shows more with `--wide`."""

    print: Callable[[Any, View], None]
    has_wide: bool = False


SENTENCE: Final = Page(lambda answer, _view: typer.echo(answer.text))


def table(
    about: str | Columns,
    *,
    title: str = "",
    more: str = "",
    is_short: bool = True,
    **computed: Callable[[Any], object],
) -> Page:
    """Return a page with a line for each record; `more` follows if there may be more of them.

    It shows six columns, and all with `--wide`, or always if it is not `is_short`.
    """
    shown = columns(about, **computed) if isinstance(about, str) else about

    def show(records: Sequence[object], view: View) -> None:
        view.table(shown, records, title, wide=view.wide or not is_short)
        if more and len(records) == view.limit:
            typer.echo(more.format(limit=view.limit, last=records[-1]))

    return Page(show, has_wide=is_short and len(shown) > SHORT)


def record(columns: Columns) -> Page:
    """Return a page with a line for each column."""
    return Page(lambda found, view: view.record(columns, found))


def field(*names: str) -> Page:
    """Return a page with these fields only, a line each: ids and secrets, for a script."""
    return Page(lambda found, _view: typer.echo("\n".join(_of(found, name) for name in names)))


def _of(record: Any, name: str) -> Any:
    return record[name] if isinstance(record, Mapping) else getattr(record, name)
