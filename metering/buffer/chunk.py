"""A chunk: the events of one producer flush for one shard, as the bytes that Redis keeps.

A line per event, ready to be used: its key and digest, whether its time was given, and then the
columns that `COPY` will take, escaped as it wants them. The producer does this once, where CPUs
are many; the drain, where they decide the rate, only splits the line. That is a third of its cost.
"""

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

import orjson

from metering.copy_format import escape, unescape
from metering.errors import MalformedChunkError
from metering.ids import BusinessId

MetadataValue = str | int | float | bool
Metadata = dict[str, MetadataValue]

LINE_FIELDS: Final = 8
_INT64: Final = Struct(">q")


class BufferedEvent(NamedTuple):
    """A checked usage event on its way; `event_at` in the form of `clock.to_wire`.

    `time_given`: by the producer of the event. A time that the edge put in does not tell a
    repetition from a conflict: it differs each time that the producer tries again.
    """

    event_id: str
    customer_id: str
    event_name: str
    event_at: str
    metadata: Metadata
    time_given: bool = True


def encode_chunk(business_id: BusinessId, events: Sequence[BufferedEvent]) -> bytes:
    """Write events as lines, ready for the drain.

    Raises:
        TypeError: a value has no JSON form (the edge lets none through).

    """
    lines = [_fields(business_id, event) for event in events]
    whole = "\n".join(["\t".join(fields) for fields in lines])
    # Asked once per chunk: hardly any text has something to escape, and asking each costs more.
    plain = (
        whole.count("\t") == (LINE_FIELDS - 1) * len(lines)
        and whole.count("\n") == len(lines) - 1
        and "\\" not in whole
        and "\r" not in whole
    )
    if not plain:
        whole = "\n".join(["\t".join(map(escape, fields)) for fields in lines])
    return whole.encode()


def _fields(business_id: BusinessId, event: BufferedEvent) -> tuple[str, ...]:
    event_id, customer_id, event_name, event_at, metadata, time_given = event
    metadata_json = canonical_metadata(metadata)
    said_at = event_at if time_given else ""
    # No id holds a control character, so the separator cannot be forged.
    said = f"{customer_id}\x1f{event_name}\x1f{said_at}\x1f{metadata_json}"
    (digest,) = _INT64.unpack(blake2b(said.encode(), digest_size=8).digest())
    key = event_key(business_id, event_id)
    flag = "g" if time_given else "s"
    return key, str(digest), flag, event_id, customer_id, event_name, event_at, metadata_json


def event_key(business_id: BusinessId, event_id: str) -> str:
    """Return what an event is known by for ever: 32 hex digits, of 128 bits."""
    return blake2b(f"{business_id}\x1f{event_id}".encode(), digest_size=16).hexdigest()


def chunk_lines(payload: bytes, count: int) -> list[str]:
    """Return the lines of a chunk that should hold `count` events.

    Raises:
        MalformedChunkError: the bytes are something else.

    """
    try:
        lines = payload.decode().split("\n") if payload else []
    except UnicodeDecodeError as error:
        raise MalformedChunkError(str(error)) from error
    if len(lines) != count:
        raise MalformedChunkError(f"{len(lines)} events where {count} were sent")
    if payload.count(b"\t") != (LINE_FIELDS - 1) * count:
        raise MalformedChunkError(f"a line has other than {LINE_FIELDS} fields")
    return lines


def parse_line(line: str) -> BufferedEvent:
    """Return the event of a line.

    Raises:
        MalformedChunkError: it is not a line of `encode_chunk`.

    """
    fields = line.split("\t")
    if len(fields) != LINE_FIELDS:
        raise MalformedChunkError(f"a line has other than {LINE_FIELDS} fields")
    _key, _digest, flag, *texts, metadata_json = map(unescape, fields)
    event_id, customer_id, event_name, event_at = texts
    try:
        metadata = orjson.loads(metadata_json)
    except ValueError as error:
        raise MalformedChunkError(str(error)) from error
    return BufferedEvent(event_id, customer_id, event_name, event_at, metadata, flag == "g")


def decode_chunk(payload: bytes) -> list[BufferedEvent]:
    """Return the events that `encode_chunk` wrote.

    Raises:
        MalformedChunkError: the bytes are something else.

    """
    count = payload.count(b"\n") + 1 if payload else 0
    return [parse_line(line) for line in chunk_lines(payload, count)]


def canonical_metadata(metadata: Metadata) -> str:
    """Return metadata as the one JSON text that equal metadata has."""
    return orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS).decode()
