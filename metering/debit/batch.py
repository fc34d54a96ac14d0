"""From the chunks of a head to keyed events."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Final, NamedTuple

from metering.buffer.chunk import KEY_BYTES, BufferedEvent, chunk_lines, encode_chunk, parse_line
from metering.buffer.entry import HeadChunk
from metering.copy_format import unescape
from metering.errors import MalformedChunkError, RefusedEventError
from metering.ids import BusinessId
from metering.money import INT64_MAX

_KEY_DIGITS: Final = 2 * KEY_BYTES


class KeyedEvent(NamedTuple):
    """An event with its key. A tuple of texts, because one is made for every event.

    key     128 bits as 32 hex digits: a hash of business and event id, so that no producer can
            choose the key of another tenant's event
    digest  64 bits of the content, signed for `bigint`
    row     the columns `chunk.ROW_COLUMNS`, escaped for `COPY`
    chunk   which chunk of the head it came in, from 0
    line    the event as it was buffered
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
        """Return the whole event. Raises: MalformedChunkError if no producer wrote its line."""
        return parse_line(self.line)

    @property
    def event_id(self) -> str:
        """Return the producer's id of the event."""
        return unescape(self.row.partition("\t")[0])

    @property
    def identity(self) -> tuple[str, int]:
        """Return the key and digest, which identify a dead letter."""
        return self.key, self.digest


class Refusal(NamedTuple):
    """An event for the dead letters, with its reason; `events` > 1 for an unreadable chunk."""

    keyed: KeyedEvent
    error: RefusedEventError
    events: int = 1


def key_events(head: Sequence[HeadChunk]) -> tuple[list[KeyedEvent], list[Refusal]]:
    """Return the events of the chunks, and a refusal for each chunk that cannot be read."""
    events: list[KeyedEvent] = []
    refusals: list[Refusal] = []
    for number, chunk in enumerate(head):
        try:
            events += _events_of_chunk(chunk, number)
        except MalformedChunkError as error:
            refusals.append(_dead_letter_of_chunk(chunk, number, error))
    return events, refusals


def _events_of_chunk(chunk: HeadChunk, number: int) -> list[KeyedEvent]:
    """Read a chunk, and check all its keys and digests together, so that later steps need not."""
    lines = chunk_lines(chunk.payload, chunk.event_count)
    try:
        events = [_keyed(chunk.business_id, line, number) for line in lines]
        keys = "".join([event[0] for event in events])
        canonical = bytes.fromhex(keys).hex()
    except ValueError as error:
        raise MalformedChunkError("a line without a key and digest") from error
    if keys != canonical or {len(event[0]) for event in events} != {_KEY_DIGITS}:
        raise MalformedChunkError("a key that is not 32 hex digits")
    digests = [event[1] for event in events]
    if max(digests) > INT64_MAX or min(digests) < -INT64_MAX - 1:
        raise MalformedChunkError("a digest of more than 64 bits")
    return events


def _keyed(business_id: BusinessId, line: str, chunk: int) -> KeyedEvent:
    # Two splits are less work than one split and a search for the start of the row.
    key, digest, _flag, row = line.split("\t", 3)
    _event_id, customer_id, name, event_at, metadata = row.split("\t")
    if "\\" in line:
        customer_id, name, metadata = map(unescape, (customer_id, name, metadata))
    # `tuple.__new__` takes half the time of the generated constructor.
    return tuple.__new__(
        KeyedEvent,
        (key, int(digest), business_id, customer_id, name, event_at, metadata, row, chunk, line),
    )


def key_event(business_id: BusinessId, event: BufferedEvent, chunk: int = 0) -> KeyedEvent:
    """Return one event as a batch would hold it."""
    return _keyed(business_id, encode_chunk(business_id, [event]).decode(), chunk)


def _dead_letter_of_chunk(chunk: HeadChunk, number: int, error: MalformedChunkError) -> Refusal:
    """Keep the bytes of a chunk as one dead letter, under a key of its own."""
    payload = b64encode(chunk.payload).decode()
    event = BufferedEvent(f"chunk {chunk.stream_id}", "", "", "", {"chunk_base64": payload})
    events = chunk.event_count if chunk.accepted_total else 0
    return Refusal(key_event(chunk.business_id, event, number), error, events)
