"""A chunk: the events of one producer flush for one shard, as the bytes that Redis keeps."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import orjson

from metering.errors import MalformedChunkError

MetadataValue = str | int | float | bool
Metadata = dict[str, MetadataValue]

_FIELDS = 5
_CANONICAL = orjson.OPT_SORT_KEYS


class BufferedEvent(NamedTuple):
    """A checked usage event on its way; `event_at` in the form of `clock.to_wire`."""

    event_id: str
    customer_id: str
    event_name: str
    event_at: str
    metadata: Metadata


def encode_chunk(events: Sequence[BufferedEvent]) -> bytes:
    """Write events as a JSON array of arrays, metadata keys sorted.

    Raises:
        TypeError: a value has no JSON form (the edge lets none through).

    """
    return orjson.dumps([tuple(event) for event in events], option=_CANONICAL)


def decode_chunk(payload: bytes) -> list[BufferedEvent]:
    """Read what `encode_chunk` wrote.

    Raises:
        MalformedChunkError: the bytes are something else.

    """
    try:
        rows = orjson.loads(payload)
        return [_event(row) for row in rows]
    except (ValueError, TypeError) as error:
        raise MalformedChunkError(str(error)) from error


def _event(row: object) -> BufferedEvent:
    """Check what the hot path relies on; a list that is not an event must not reach it."""
    if type(row) is not list or len(row) != _FIELDS or type(row[4]) is not dict:
        raise MalformedChunkError("an element is not [id, customer, name, time, metadata]")
    if not (type(row[0]) is type(row[1]) is type(row[2]) is type(row[3]) is str):
        raise MalformedChunkError("an event's id, customer, name or time is not a text")
    return cast("BufferedEvent", tuple.__new__(BufferedEvent, row))


def canonical_metadata(metadata: Metadata) -> str:
    """Return metadata as the one JSON text that equal metadata has."""
    return orjson.dumps(metadata, option=_CANONICAL).decode()
