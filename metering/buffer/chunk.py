"""A chunk: the events of one producer flush for one shard, as the bytes that Redis keeps.

A chunk has a line for each event: the key and digest, whether the producer gave the time, and then
the columns for `COPY`, escaped. The producer does this work, because producers have many CPUs and
the drain has few. The drain only splits the line, which saves a third of its cost.
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

# Raise it with every change of a line, and go on reading the lines of older releases: see `keys`.
CHUNK_VERSION: Final = 1
KEY_BYTES: Final = 16
_hash_key: Final = partial(blake2b, digest_size=KEY_BYTES)
_JSON: Final = Encoder(order="sorted")


class BufferedEvent(NamedTuple):
    """A checked usage event in the buffer; `event_at` has the form of `clock.to_wire`.

    `time_given` is false if our API set the time. Such a time differs each time that the producer
    tries again, so it is not part of the digest.
    """

    event_id: str
    customer_id: str
    event_name: str
    event_at: str
    metadata: Metadata
    time_given: bool = True


# The columns of `usage_events` at the end of a line, and all fields of a line.
ROW_COLUMNS: Final = BufferedEvent._fields[:5]
LINE_FIELDS: Final = ("event_key", "payload_digest", "time_given", *ROW_COLUMNS)


class EventColumns(NamedTuple):
    """The fields of several events, each as a column, so that they are encoded together."""

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
    """Return the chunk of these events. Raises: TypeError if a value has no JSON form."""
    return chunk_of(encode_lines(business_id, EventColumns.of(events)))


def chunk_of(lines: Sequence[str]) -> bytes:
    """Return the chunk that holds these lines."""
    return "\n".join(lines).encode()


def encode_lines(business_id: BusinessId, events: EventColumns) -> list[str]:
    """Return a line for each event. Raises: TypeError if a value has no JSON form.

    Nearly all calls are for all events at once. A thousand events take 1.3 ms; a loop over the
    events takes 2.5 ms.
    """
    event_ids, customer_ids, names, times, metadata, are_given = events
    json = _JSON.encode_lines(metadata).decode().split("\n")[:-1]
    keyed = _utf_8(list(map(_owner(business_id).__add__, event_ids)))
    keys = [key.hexdigest() for key in map(_hash_key, keyed)]
    texts = content = _joined(customer_ids, names, times, json)
    if not all(are_given):
        given_times = [
            time if is_given else "" for time, is_given in zip(times, are_given, strict=True)
        ]
        content = _joined(customer_ids, names, given_times, json)
    heads = (keys, _digests(content), ["g" if is_given else "s" for is_given in are_given])
    if _are_plain((event_ids, customer_ids, names, json)):
        return _joined(*heads, event_ids, texts)
    escaped = (map(escape, column) for column in (event_ids, customer_ids, names, times, json))
    return _joined(*heads, *escaped)


def _joined(*columns: Iterable[str]) -> list[str]:
    return list(map("\t".join, zip(*columns, strict=True)))


def _digests(contents: Sequence[str]) -> list[str]:
    """Return a 64-bit digest of the content of each event, as an integer of Postgres.

    It tells a repetition from a conflict, and no cost depends on it. So it need not be a
    cryptographic hash, which takes ten times as long. No id holds a tab: a content has one reading.
    """
    digests = b"".join(map(xxh3_64_digest, _utf_8(contents)))
    return list(map(str, unpack(f">{len(contents)}q", digests)))


def _utf_8(texts: Sequence[str]) -> list[bytes]:
    """Encode texts, all at once if none of them holds a line break."""
    encoded = "\n".join(texts).encode().split(b"\n")
    return encoded if len(encoded) == len(texts) else [text.encode() for text in texts]


def _are_plain(columns: Iterable[Iterable[str]]) -> bool:
    """Tell whether no character must be escaped. One test of the joined text is the fastest."""
    whole = "".join(chain.from_iterable(columns))
    return not any(character in whole for character in ESCAPED)


def _owner(business_id: BusinessId) -> str:
    return f"{business_id}\x1f"


def event_key(business_id: BusinessId, event_id: str) -> str:
    """Return the permanent key of an event: 128 bits as 32 hex digits."""
    return _hash_key((_owner(business_id) + event_id).encode()).hexdigest()


def chunk_lines(payload: bytes, count: int) -> list[str]:
    """Return the lines of a chunk. Raises: MalformedChunkError if there are not `count`."""
    try:
        lines = payload.decode().split("\n") if payload else []
    except UnicodeDecodeError as error:
        raise MalformedChunkError(str(error)) from error
    if len(lines) != count:
        raise MalformedChunkError(f"{len(lines)} events where {count} were sent")
    if payload.count(b"\t") != (len(LINE_FIELDS) - 1) * count:
        raise MalformedChunkError(f"a line has other than {len(LINE_FIELDS)} fields")
    return lines


def parse_line(line: str) -> BufferedEvent:
    """Return the event of a line. Raises: MalformedChunkError if it is no such line."""
    fields = line.split("\t")
    if len(fields) != len(LINE_FIELDS):
        raise MalformedChunkError(f"a line has other than {len(LINE_FIELDS)} fields")
    _key, _digest, flag, *texts, metadata_json = map(unescape, fields)
    event_id, customer_id, event_name, event_at = texts
    try:
        metadata = orjson.loads(metadata_json)
    except ValueError as error:
        raise MalformedChunkError(str(error)) from error
    return BufferedEvent(event_id, customer_id, event_name, event_at, metadata, flag == "g")
