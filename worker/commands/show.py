"""What commands print: a table for people, JSON for programs, amounts in both units."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

import orjson
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metering.clock import to_wire
from metering.money import plain

# A pipe has no edge: an id that is wrapped at one could not be searched for.
_PIPE_COLUMNS: Final = 1000


def print_json(data: object) -> None:
    """Print any record of ours: decimals as text, bytes as hex, times as on the wire."""
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
    raise TypeError(type(value).__name__)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print rows under column names; columns whose name ends with `#` are numbers, to the right."""
    table = Table(title=title or None, title_justify="left")
    for name in columns:
        table.add_column(
            name.rstrip("#"), justify="right" if name.endswith("#") else "left", overflow="fold"
        )
    empty = True
    for row in rows:
        # As Text: a name that looks like markup stays what it is.
        table.add_row(*(Text(_cell(value)) for value in row))
        empty = False
    if empty:
        typer.echo(f"{title}: none" if title else "none")
        return
    console = Console()
    console.width = console.width if console.is_terminal else _PIPE_COLUMNS
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, datetime):
        return to_wire(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def major(amount_minor: int, currency: str, decimals: Mapping[str, int]) -> str | None:
    """Return `-12.30` for -1230 cents; None for a currency that is not configured."""
    if currency not in decimals:
        return None
    return format(Decimal(amount_minor).scaleb(-decimals[currency]), "f")


def money(amount_minor: int, currency: str, decimals: Mapping[str, int]) -> str:
    """Return an amount in both units: `1230 (12.30 USD)`."""
    whole = major(amount_minor, currency, decimals)
    return f"{amount_minor} ({whole} {currency})" if whole else f"{amount_minor} ({currency})"
