"""How a command prints its result: tables, records, fields and sentences.

A column is the name of a field, or a pair of its head and its source. A source is the name of a
field, an amount (`Minor`), or a function of the record.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import typer

from worker.cli.show import SHORT, money, print_record, print_table


class Minor(NamedTuple):
    """The field of an amount in minor units, in the record's `currency`: `1230 (12.30 USD)`."""

    name: str


Column = str | tuple[str, str | Minor | Callable[[Any], object]]


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

    def row(self, columns: Sequence[Column], record: object) -> list[object]:
        """Return the cells of a record."""
        return [self._cell(column, record) for column in columns]

    def _cell(self, column: Column, record: object) -> object:
        source = column.rstrip("#~") if isinstance(column, str) else column[1]
        if isinstance(source, Minor):
            return self.money(_of(record, source.name), _of(record, "currency"))
        return _of(record, source) if isinstance(source, str) else source(record)

    def money(self, amount_minor: int, currency: str) -> str:
        """Return an amount in both units: `1230 (12.30 USD)`."""
        return money(amount_minor, currency, self.currencies)

    def table(
        self, columns: Sequence[Column], records: Sequence[object], title: str = "", **how: bool
    ) -> None:
        """Print a line for each record."""
        rows = [self.row(columns, record) for record in records]
        print_table([*map(_head, columns)], rows, title, **how)

    def record(self, columns: Sequence[Column], record: object, title: str = "") -> None:
        """Print a line for each column."""
        names = (_head(column).rstrip("#~") for column in columns)
        print_record(dict(zip(names, self.row(columns, record), strict=True)), title)


@dataclass(frozen=True, slots=True)
class Page:
    """Prints a result on a terminal; `has_wide`: it shows more with `--wide`."""

    print: Callable[[Any, View], None]
    has_wide: bool = False


SENTENCE: Final = Page(lambda answer, _view: typer.echo(answer.text))


def table(*columns: Column, title: str = "", more: str = "", is_short: bool = True) -> Page:
    """Return a page with a line for each record; `more` follows if there may be more of them.

    It shows six columns, and all with `--wide`, or always if it is not `is_short`.
    """

    def show(records: Sequence[object], view: View) -> None:
        view.table(columns, records, title, wide=view.wide or not is_short)
        if more and len(records) == view.limit:
            typer.echo(more.format(limit=view.limit, last=records[-1]))

    return Page(show, has_wide=is_short and len(columns) > SHORT)


def record(*columns: Column) -> Page:
    """Return a page with a line for each column."""
    return Page(lambda found, view: view.record(columns, found))


def field(*names: str) -> Page:
    """Return a page with these fields only, a line each: ids and secrets, for a script."""
    return Page(lambda found, _view: typer.echo("\n".join(_of(found, name) for name in names)))


def _head(column: Column) -> str:
    return column if isinstance(column, str) else column[0]


def _of(record: Any, name: str) -> Any:
    return record[name] if isinstance(record, Mapping) else getattr(record, name)
