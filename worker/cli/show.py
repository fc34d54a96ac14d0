"""Output of commands: tables and records for people, JSON for programs, amounts in both units.

Only prose is folded, and nothing is cut: an id that is broken over two lines can neither be copied
nor searched for. A table that is too wide for the terminal is printed as records.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import orjson
import typer
from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metering.clock import to_wire
from metering.money import plain

# Columns of a table without --wide.
SHORT: Final = 6
# Between two columns.
_GAP: Final = 2
# Prose that is folded into less than this is harder to read than a record.
_PROSE_MIN: Final = 12
# A pipe has no edge.
_PIPE_COLUMNS: Final = 1 << 16


def print_json(data: object) -> None:
    """Print a record: decimals as text, bytes as hex, times as on the wire."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_PASSTHROUGH_DATETIME
    typer.echo(orjson.dumps(data, default=_as_json, option=options))


def _as_json(value: object) -> object:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, datetime):
        return to_wire(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    raise TypeError(type(value).__name__)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", *, wide: bool = True
) -> None:
    """Print rows under column names: the first six, or all of them with `wide`.

    A name that ends with `#` is of numbers, which stand to the right. A name that ends with `~` is
    of prose, which may be folded at spaces.
    """
    heads = columns if wide else columns[:SHORT]
    names = [head.rstrip("#~") for head in heads]
    lines = [[_cell(value) for value in row[: len(heads)]] for row in rows]
    if not lines:
        typer.echo(f"{title}: none" if title else "none")
        return
    if title:
        typer.echo(title)
    console = Console()
    console.width = console.width if console.is_terminal else _PIPE_COLUMNS
    widths = _widths(heads, [names, *lines], console.width - _GAP * (len(heads) - 1))
    if widths is None:
        typer.echo("\n\n".join(_record(names, line) for line in lines))
    else:
        console.print(_table(heads, names, lines, widths))


def print_record(fields: Mapping[str, object], title: str = "") -> None:
    """Print a line for each field that has a value."""
    if title:
        typer.echo(title)
    typer.echo(_record(list(fields), [_cell(value) for value in fields.values()]))


def _record(names: Sequence[str], cells: Sequence[str]) -> str:
    width = max(map(len, names))
    filled = [(name, cell) for name, cell in zip(names, cells, strict=True) if cell]
    return "\n".join(f"{name:<{width}}  {cell}" for name, cell in filled)


def _widths(
    heads: Sequence[str], lines: Sequence[Sequence[str]], room: int
) -> Sequence[int] | None:
    """Return a width for each column. Returns None if the columns need more than `room`."""
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    spare = [
        width - max(_PROSE_MIN, *map(_longest_word, column)) if head.endswith("~") else 0
        for head, width, column in zip(heads, widths, zip(*lines, strict=True), strict=True)
    ]
    excess = sum(widths) - room
    for at in sorted(range(len(heads)), key=spare.__getitem__, reverse=True):
        taken = max(0, min(excess, spare[at]))
        widths[at] -= taken
        excess -= taken
    return widths if excess <= 0 else None


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _table(
    heads: Sequence[str],
    names: Sequence[str],
    lines: Sequence[Sequence[str]],
    widths: Sequence[int],
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for head, name, width in zip(heads, names, widths, strict=True):
        table.add_column(name, justify="right" if head.endswith("#") else "left", width=width)
    for line in lines:
        # As Text: Rich must not read a name as markup.
        table.add_row(*(Text(cell) for cell in line))
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _visible(str(value))


def _visible(text: str) -> str:
    """Return text with its control characters escaped: they could rewrite the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def major(amount_minor: int, currency: str, decimals: Mapping[str, int]) -> str | None:
    """Return `-12.30` for -1230 cents. Returns None if the currency is not configured."""
    if currency not in decimals:
        return None
    return format(Decimal(amount_minor).scaleb(-decimals[currency]), "f")


def money(amount_minor: int, currency: str, decimals: Mapping[str, int]) -> str:
    """Return an amount in both units: `1230 (12.30 USD)`."""
    whole = major(amount_minor, currency, decimals)
    return f"{amount_minor} ({whole} {currency})" if whole else f"{amount_minor} ({currency})"
