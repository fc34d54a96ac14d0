"""Search the buffer, newest chunks first and within bounds, to show where an event is.

An event that no drain has read is stored nowhere else. Producers have priority, so a search reads
little more than `BYTES_MAX`. It begins with one chunk of each shard, because chunks can be large,
and reads more at a time while they are small.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from redis.exceptions import RedisError

from metering.buffer.chunk import BufferedEvent, parse_line
from metering.buffer.entry import HeadChunk
from metering.buffer.keys import Shard
from metering.buffer.shard import shard_of
from metering.buffer.stream import UsageBuffer
from metering.clock import from_wire
from metering.errors import BufferUnavailableError, MalformedChunkError
from metering.ids import BusinessId, CustomerId

CHUNKS_PER_LOOK_MAX: Final = 64  # of each shard
BYTES_MAX: Final = 1 << 20


class Search(NamedTuple):
    """The event, if it was found. `is_cut`: the search ended before the end of the buffer."""

    event: BufferedEvent | None
    is_cut: bool = False


def find_buffered(buffer: UsageBuffer, business_id: BusinessId, event_key: str) -> Search:
    """Search the newest `BYTES_MAX` for an event of this business.

    Raises: BufferUnavailableError if Redis is away.
    """
    wanted = event_key.encode()
    seen_bytes = 0
    for chunk in _newest(buffer, buffer.shards):
        if chunk.business_id == business_id and wanted in chunk.payload:
            for line in chunk.payload.split(b"\n"):
                if line.startswith(wanted) and (event := _event(line)):
                    return Search(event)
        seen_bytes += len(chunk.payload)
        if seen_bytes > BYTES_MAX:
            return Search(None, is_cut=True)
    return Search(None)


def newest_buffered(
    buffer: UsageBuffer, business_id: BusinessId, customer_id: CustomerId | None, events_max: int
) -> list[tuple[str, BufferedEvent]]:
    """Return the newest events of a business or of one customer, each with its key.

    Raises: BufferUnavailableError if Redis is away.
    """
    shards: Sequence[Shard] = buffer.shards
    if customer_id is not None:
        shards = [shard_of(business_id, customer_id, len(shards))]
    found: list[tuple[str, BufferedEvent]] = []
    seen_bytes = 0
    for chunk in _newest(buffer, shards):
        if chunk.business_id == business_id:
            found += _events(chunk, customer_id)
        seen_bytes += len(chunk.payload)
        if len(found) >= events_max or seen_bytes > BYTES_MAX:
            break
    return found[:events_max]


def _newest(buffer: UsageBuffer, shards: Sequence[Shard]) -> Iterator[HeadChunk]:
    """Yield chunks that this release can read; each round trip sorts its own, newest first."""
    tails = dict.fromkeys(shards, "+")
    count = 1
    while tails:
        try:
            found = buffer.read_tails(tails, count)
        except RedisError as error:
            raise BufferUnavailableError(type(error).__name__) from error
        together = [chunk for chunks in found.values() for chunk in chunks]
        readable = [chunk for chunk in together if not chunk.is_newer]
        yield from sorted(readable, key=lambda chunk: chunk.position, reverse=True)
        tails = {
            shard: f"({chunks[-1].stream_id}"
            for shard, chunks in found.items()
            if len(chunks) == count
        }
        is_small = sum(len(chunk.payload) for chunk in together) < BYTES_MAX // 4
        count = min(2 * count, CHUNKS_PER_LOOK_MAX) if is_small else 1


def _events(
    chunk: HeadChunk, customer_id: CustomerId | None
) -> Iterator[tuple[str, BufferedEvent]]:
    for line in reversed(chunk.payload.split(b"\n")):
        event = _event(line)
        if event is not None and customer_id in (None, event.customer_id):
            yield line.partition(b"\t")[0].decode(), event


def _event(line: bytes) -> BufferedEvent | None:
    """Return the event of a line. Returns None if the drain would refuse it."""
    try:
        event = parse_line(line.decode())
        from_wire(event.event_at)
    except (MalformedChunkError, ValueError):
        return None
    return event
