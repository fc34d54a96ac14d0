"""A chunk: the events of one producer flush for one shard, as the bytes that Redis keeps."""

from collections.abc import Sequence
from typing import NamedTuple

import orjson

from metering.errors import MalformedChunkError

MetadataValue = str | int | float | bool
Metadata = dict[str, MetadataValue]

_TYPES = (str, str, str, str, dict)
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
    if type(row) is not list or tuple(map(type, row)) != _TYPES:
        raise MalformedChunkError("an element is not [id, customer, name, time, metadata]")
    return tuple.__new__(BufferedEvent, row)


def canonical_metadata(metadata: Metadata) -> str:
    """Return metadata as the one JSON text that equal metadata has."""
    return orjson.dumps(metadata, option=_CANONICAL).decode()
