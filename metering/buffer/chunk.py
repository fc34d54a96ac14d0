"""A chunk: the events of one producer flush for one shard, as the bytes that Redis keeps.

A line per event, ready to be used: its key and digest, whether its time was given, and then the
columns that `COPY` will take, escaped as it wants them. The producer does this once, where CPUs
are many; the drain, where they decide the rate, only splits the line. That is a third of its cost.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import chain
from struct import unpack
from typing import Final, NamedTuple

import orjson
from msgspec.json import Encoder
from xxhash import xxh3_64_digest

from metering.copy_format import ESCAPED, escape, unescape
from metering.errors import MalformedChunkError
from metering.ids import BusinessId

MetadataValue = str | int | float | bool
Metadata = dict[str, MetadataValue]

# Raise it with every change of a line, and go on reading what older releases wrote: see `keys`.
CHUNK_VERSION: Final = 1
LINE_FIELDS: Final = 8
KEY_BYTES: Final = 16
_hash_key: Final = partial(blake2b, digest_size=KEY_BYTES)
_JSON: Final = Encoder(order="sorted")


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


class EventColumns(NamedTuple):
    """The same of several events, each field a column: how they are read and written at once."""

    event_ids: Sequence[str]
    customer_ids: Sequence[str]
    event_names: Sequence[str]
    times: Sequence[str]
    metadata: Sequence[Metadata]
    are_given: Sequence[bool]

    @classmethod
    def of(cls, events: Sequence[BufferedEvent]) -> "EventColumns":
        """Return the columns of events."""
        return cls(*zip(*events, strict=True)) if events else cls((), (), (), (), (), ())


def encode_chunk(business_id: BusinessId, events: Sequence[BufferedEvent]) -> bytes:
    """Write events as lines, ready for the drain.

    Raises:
        TypeError: a value has no JSON form (the edge lets none through).

    """
    return chunk_of(encode_lines(business_id, EventColumns.of(events)))


def chunk_of(lines: Sequence[str]) -> bytes:
    """Return the chunk that holds these lines."""
    return "\n".join(lines).encode()


def encode_lines(business_id: BusinessId, events: EventColumns) -> list[str]:
    """Write a line per event.

    Nearly all of it happens in calls for all events at once: 1.3 ms for a thousand of them, where
    a loop over the events takes 2.5.

    Raises:
        TypeError: a value has no JSON form (the edge lets none through).

    """
    event_ids, customer_ids, names, times, metadata, are_given = events
    json = _JSON.encode_lines(metadata).decode().split("\n")[:-1]
    keyed = _utf_8(list(map(_owner(business_id).__add__, event_ids)))
    keys = [key.hexdigest() for key in map(_hash_key, keyed)]
    texts = said = _joined(customer_ids, names, times, json)
    if not all(are_given):
        said_times = [
            time if is_given else "" for time, is_given in zip(times, are_given, strict=True)
        ]
        said = _joined(customer_ids, names, said_times, json)
    heads = (keys, _digests(said), ["g" if is_given else "s" for is_given in are_given])
    if _are_plain((event_ids, customer_ids, names, json)):
        return _joined(*heads, event_ids, texts)
    escaped = (map(escape, column) for column in (event_ids, customer_ids, names, times, json))
    return _joined(*heads, *escaped)


def _joined(*columns: Iterable[str]) -> list[str]:
    """Return the fields of each event as one text."""
    return list(map("\t".join, zip(*columns, strict=True)))


def _digests(said: Sequence[str]) -> list[str]:
    """Return 64 bits of what each event says, as the integers of Postgres.

    They tell a repetition from a conflict, and nothing is charged by them: no cryptographic hash,
    which would take ten times as long. No id holds a tab, so what an event says has one reading.
    """
    digests = b"".join(map(xxh3_64_digest, _utf_8(said)))
    return list(map(str, unpack(f">{len(said)}q", digests)))


def _utf_8(texts: Sequence[str]) -> list[bytes]:
    """Encode texts: all at once, if none of them holds a line break."""
    encoded = "\n".join(texts).encode().split(b"\n")
    return encoded if len(encoded) == len(texts) else [text.encode() for text in texts]


def _are_plain(columns: Iterable[Iterable[str]]) -> bool:
    """Tell whether nothing must be escaped; for each field apart, asking takes longer."""
    whole = "".join(chain.from_iterable(columns))
    return not any(character in whole for character in ESCAPED)


def _owner(business_id: BusinessId) -> str:
    return f"{business_id}\x1f"


def event_key(business_id: BusinessId, event_id: str) -> str:
    """Return what an event is known by for ever: 32 hex digits, of 128 bits."""
    return _hash_key((_owner(business_id) + event_id).encode()).hexdigest()


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
