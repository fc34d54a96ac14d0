"""From the chunks of a head to keyed events: what a batch works on."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

from metering.buffer.chunk import BufferedEvent, canonical_metadata, decode_chunk
from metering.buffer.stream import HeadChunk
from metering.errors import MalformedChunkError, RefusedEventError
from metering.ids import BusinessId

_INT64: Final = Struct(">q")


class KeyedEvent(NamedTuple):
    """An event with what makes it unique. Tuples: this is made once per event.

    `key`: 32 hex digits, the 128-bit hash of business and event id, which a stranger cannot steer
    towards another tenant's. `digest`: 64 bits of what the event says, signed for `bigint`.
    `chunk`: which chunk of the head it came in, from 0.
    """

    key: str
    digest: int
    business_id: BusinessId
    event: BufferedEvent
    metadata_json: str
    chunk: int


class Refusal(NamedTuple):
    """An event for the dead letters, with its reason; `events` > 1 for an unreadable chunk."""

    keyed: KeyedEvent
    error: RefusedEventError
    events: int = 1


def key_events(head: Sequence[HeadChunk]) -> tuple[list[KeyedEvent], list[Refusal]]:
    """Decode the chunks; those that cannot be read are refused whole."""
    events: list[KeyedEvent] = []
    refusals: list[Refusal] = []
    for number, chunk in enumerate(head):
        try:
            decoded = _decode(chunk)
        except MalformedChunkError as error:
            refusals.append(_unreadable(chunk, number, error))
            continue
        events += [key_event(chunk.business_id, event, number) for event in decoded]
    return events, refusals


def _decode(chunk: HeadChunk) -> list[BufferedEvent]:
    events = decode_chunk(chunk.payload)
    if len(events) != chunk.event_count:
        raise MalformedChunkError(f"{len(events)} events where {chunk.event_count} were sent")
    return events


def key_event(business_id: BusinessId, event: BufferedEvent, chunk: int) -> KeyedEvent:
    """Give an event its key and digest."""
    metadata_json = canonical_metadata(event.metadata)
    event_id, customer_id, event_name, event_at, _ = event
    # No id holds a control character, so the separator cannot be forged.
    said = f"{customer_id}\x1f{event_name}\x1f{event_at}\x1f{metadata_json}"
    key = blake2b(f"{business_id}\x1f{event_id}".encode(), digest_size=16).hexdigest()
    (digest,) = _INT64.unpack(blake2b(said.encode(), digest_size=8).digest())
    # Made for every event: straight from a tuple is half the price of the generated constructor.
    return tuple.__new__(KeyedEvent, (key, digest, business_id, event, metadata_json, chunk))


def _unreadable(chunk: HeadChunk, number: int, error: MalformedChunkError) -> Refusal:
    """Keep the bytes of a chunk as one dead letter, under a key of its own."""
    payload = b64encode(chunk.payload).decode()
    event = BufferedEvent(f"chunk {chunk.stream_id}", "", "", "", {"chunk_base64": payload})
    return Refusal(key_event(chunk.business_id, event, number), error, chunk.event_count)
