"""Usage events of a file, a line at a time: bounded in memory, resumable at any line.

Both formats have one event per line, which can be counted, refused and found by its offset. So a
CSV cell holds no line break; without that rule one stray quote would swallow the lines after it.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal

import orjson

from metering.errors import FieldProblem, InvalidInputError
from metering.json_keys import check_keys, check_keys_read
from metering.money import INT64_MAX

Format = Literal["ndjson", "csv"]
Fields = dict[str, object]

# The largest event there can be, with every character escaped, has a third of this.
LINE_BYTES_MAX: Final = 1 << 20
FIELDS: Final = ("event_id", "customer_id", "event_name", "timestamp")
METADATA: Final = "metadata"

_BOM: Final = b"\xef\xbb\xbf"
# No leading zeros, no exponent: 007 and 1e5 are names.
_INTEGER: Final = re.compile(r"-?[1-9][0-9]{0,18}|0", re.ASCII)
_FRACTION: Final = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file; `end` is the offset after it. A `content` that is too long is cut."""

    number: int
    end: int
    content: bytes
    is_too_long: bool = False


def read_lines(file: BinaryIO, *, number: int = 0) -> Iterator[Line]:
    """Yield the lines from the file's position on; `number` lines lie before it."""
    end = file.tell()
    while content := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        end += len(content)
        is_too_long = len(content) > LINE_BYTES_MAX and not content.endswith(b"\n")
        if is_too_long:
            end += _skip_line(file)
        if number == 1:
            content = content.removeprefix(_BOM)
        yield Line(number, end, content.rstrip(b"\r\n"), is_too_long)


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of the line; return the number of bytes."""
    skipped = 0
    while part := file.readline(LINE_BYTES_MAX):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


Parse = Callable[[Line], Fields]


def parse_ndjson(line: Line) -> Fields:
    """Return the event of a line. Raises InvalidInputError if it is no event that can be sent."""
    _check_length(line)
    try:
        fields = orjson.loads(line.content)
    except orjson.JSONDecodeError as error:
        raise _refused("line", f"is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _refused("line", "is not a JSON object")
    check_keys_read(line.content, fields)
    return _checked(fields)


def csv_parser(header: Line, columns: Mapping[str, str]) -> Parse:
    """Return the parser of the lines below this header; `columns`: field -> name of its column.

    All other columns are metadata; one called `metadata` holds a JSON object of more. An empty cell
    is left out.

    Raises:
        InvalidInputError: a column is missing, has no name, or is there twice.

    """
    names = _cells(header)
    places = {field: _place(names, columns.get(field, field)) for field in FIELDS}
    others = [(i, name) for i, name in enumerate(names) if i not in places.values()]
    if not all(names) or len(set(names)) < len(names):
        raise _refused("header", "has a column without a name, or one that is there twice")

    def parse(line: Line) -> Fields:
        cells = _cells(line)
        if len(cells) != len(names):
            raise _refused("line", f"has {len(cells)} cells where the header has {len(names)}")
        fields: Fields = {field: cells[i] for field, i in places.items() if cells[i]}
        given = {name: cells[i] for i, name in others if cells[i]}
        metadata = _object(given.pop(METADATA, "{}"))
        if twice := sorted(metadata.keys() & given.keys()):
            reason = f"is given twice: in the column {METADATA} and in one of its own"
            raise InvalidInputError(*(FieldProblem(f"{METADATA}.{name}", reason) for name in twice))
        metadata.update((name, _value(cell)) for name, cell in given.items())
        return _checked(fields | {METADATA: metadata})

    return parse


def _place(names: list[str], wanted: str) -> int:
    try:
        return names.index(wanted)
    except ValueError:
        raise _refused("header", f"has no column {wanted!r}") from None


def _cells(line: Line) -> list[str]:
    _check_length(line)
    try:
        return next(csv.reader([line.content.decode()], strict=True), [])
    except UnicodeDecodeError as error:
        raise _refused("line", f"is not UTF-8: byte {error.start + 1} of it") from None
    except csv.Error as error:
        raise _refused("line", f"is not CSV on one line: {error}") from None


def _object(cell: str) -> Fields:
    """Return the JSON object of a cell."""
    try:
        found = orjson.loads(cell)
    except orjson.JSONDecodeError as error:
        raise _refused(METADATA, f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _refused(METADATA, "is not a JSON object")
    check_keys(cell, METADATA)
    return found


def _value(cell: str) -> str | int | float:
    """Return a number if it would be written exactly as the cell is, else the text.

    An id that looks like a number must not become another id. A meter sums numbers in texts too.
    """
    if _INTEGER.fullmatch(cell):
        number = int(cell)
        return number if -INT64_MAX <= number <= INT64_MAX else cell
    if _FRACTION.fullmatch(cell) and repr(float(cell)) == cell:
        return float(cell)
    return cell


def _check_length(line: Line) -> None:
    if line.is_too_long:
        raise _refused("line", f"is longer than {LINE_BYTES_MAX} bytes")


def _checked(fields: Fields) -> Fields:
    """Refuse an event without id or time: a resumed import would send it as another event."""
    for field in ("event_id", "timestamp"):
        if fields.get(field) is None:
            raise _refused(field, "is missing; an import needs it, to send a line twice safely")
    return fields


def _refused(field: str, reason: str) -> InvalidInputError:
    return InvalidInputError(FieldProblem(field, reason))
