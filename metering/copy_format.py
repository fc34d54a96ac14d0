"""Text formats of Postgres: fields of `COPY`, and arrays."""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Final

Element = str | int | Decimal | datetime | bytes | None

_ESCAPES: Final = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))
ESCAPED: Final = tuple(plain for plain, _ in _ESCAPES)


def escape(text: str) -> str:
    """Escape a text for a field."""
    for plain, escaped in _ESCAPES:
        text = text.replace(plain, escaped)
    return text


def unescape(text: str) -> str:
    """Undo `escape`."""
    if "\\" not in text:
        return text
    parts = text.split("\\\\")  # an escaped backslash must not be read as the start of another
    for plain, escaped in _ESCAPES[1:]:
        parts = [part.replace(escaped, plain) for part in parts]
    return "\\".join(parts)


def array(values: Iterable[Element]) -> str:
    """Return an array as a parameter of a statement that casts it to its type.

    The driver looks up how to write each element, which takes 3 us: a sixth of the cost of a wallet
    in a batch. This takes a tenth of that.
    """
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: Element) -> str:
    if isinstance(value, str):
        if '"' in value or "\\" in value:
            value = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{value}"'
    if isinstance(value, int):
        return str(value)
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return rf'"\\x{value.hex()}"'
    return format(value, "f") if isinstance(value, Decimal) else f'"{value.isoformat()}"'
