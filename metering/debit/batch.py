"""From the chunks of a head to keyed events: what a batch works on."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Final, NamedTuple

from metering.buffer.chunk import (
    BufferedEvent,
    chunk_lines,
    encode_chunk,
    parse_line,
)
from metering.buffer.entry import HeadChunk
from metering.copy_format import unescape
from metering.errors import MalformedChunkError, RefusedEventError
from metering.ids import BusinessId
from metering.money import INT64_MAX

_KEY_LENGTH: Final = 32


class KeyedEvent(NamedTuple):
    """An event with what makes it unique. Tuples and texts: this is made once per event.

    `key`: 32 hex digits, the 128-bit hash of business and event id, which a stranger cannot steer
    towards another tenant's. `digest`: 64 bits of what the event says, signed for `bigint`.
    `row`: its columns for `COPY`, from the event id to the metadata. `chunk`: which chunk of the
    head it came in, from 0. `line`: as it was buffered.
    """

    key: str
    digest: int
    business_id: BusinessId
    customer_id: str
    event_name: str
    event_at: str
    metadata_json: str
    row: str
    chunk: int
    line: str

    @property
    def event(self) -> BufferedEvent:
        """Return the event in full.

        Raises:
            MalformedChunkError: its line is not what a producer writes.

        """
        return parse_line(self.line)

    @property
    def event_id(self) -> str:
        """Return the producer's id of the event."""
        return unescape(self.row.partition("\t")[0])

    @property
    def identity(self) -> tuple[str, int]:
        """Return what the database knows it by."""
        return self.key, self.digest


class Refusal(NamedTuple):
    """An event for the dead letters, with its reason; `events` > 1 for an unreadable chunk."""

    keyed: KeyedEvent
    error: RefusedEventError
    events: int = 1


def key_events(head: Sequence[HeadChunk]) -> tuple[list[KeyedEvent], list[Refusal]]:
    """Read the lines of the chunks; chunks that cannot be read are refused whole."""
    events: list[KeyedEvent] = []
    refusals: list[Refusal] = []
    for number, chunk in enumerate(head):
        try:
            events += _of_chunk(chunk, number)
        except MalformedChunkError as error:
            refusals.append(_unreadable(chunk, number, error))
    return events, refusals


def _of_chunk(chunk: HeadChunk, number: int) -> list[KeyedEvent]:
    """Read a chunk; its keys are checked together, so that nothing else can go wrong with them."""
    lines = chunk_lines(chunk.payload, chunk.event_count)
    try:
        events = [_keyed(chunk.business_id, line, number) for line in lines]
        keys = "".join([event[0] for event in events])
        canonical = bytes.fromhex(keys).hex()
    except ValueError as error:
        raise MalformedChunkError("a line without a key and digest") from error
    if keys != canonical or {len(event[0]) for event in events} != {_KEY_LENGTH}:
        raise MalformedChunkError("a key that is not 32 hex digits")
    digests = [event[1] for event in events]
    if max(digests) > INT64_MAX or min(digests) < -INT64_MAX - 1:
        raise MalformedChunkError("a digest of more than 64 bits")
    return events


def _keyed(business_id: BusinessId, line: str, chunk: int) -> KeyedEvent:
    # Split twice: less work than to split once and to count where the row begins.
    key, digest, _flag, row = line.split("\t", 3)
    _event_id, customer_id, name, event_at, metadata = row.split("\t")
    if "\\" in line:
        customer_id, name, metadata = map(unescape, (customer_id, name, metadata))
    # Made for every event: straight from a tuple is half the price of the generated constructor.
    return tuple.__new__(
        KeyedEvent,
        (key, int(digest), business_id, customer_id, name, event_at, metadata, row, chunk, line),
    )


def key_event(business_id: BusinessId, event: BufferedEvent, chunk: int = 0) -> KeyedEvent:
    """Return one event as a batch would hold it."""
    return _keyed(business_id, encode_chunk(business_id, [event]).decode(), chunk)


def _unreadable(chunk: HeadChunk, number: int, error: MalformedChunkError) -> Refusal:
    """Keep the bytes of a chunk as one dead letter, under a key of its own."""
    payload = b64encode(chunk.payload).decode()
    event = BufferedEvent(f"chunk {chunk.stream_id}", "", "", "", {"chunk_base64": payload})
    return Refusal(
        key_event(chunk.business_id, event, number),
        error,
        chunk.event_count if chunk.accepted_total else 0,
    )
