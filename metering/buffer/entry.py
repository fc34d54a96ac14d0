"""An entry of a stream, as read from Redis: a chunk whose events are still bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from metering.buffer.chunk import CHUNK_VERSION
from metering.buffer.keys import Shard, StreamId
from metering.errors import NewerChunkError
from metering.ids import BusinessId

# Limits for a foreign entry: its figures must fit the columns of a batch.
EVENTS_DIGITS_MAX: Final = 6
TOTAL_DIGITS_MAX: Final = 18
VERSION_DIGITS_MAX: Final = 4
ID_LENGTH_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class HeadChunk:
    """One stream entry.

    `accepted_total` counts the events that the shard had accepted with this chunk, so that a gap
    shows; it is 0 in a foreign entry. `version` is that of the form of the events, see `keys`.
    """

    stream_id: StreamId
    business_id: BusinessId
    event_count: int
    accepted_total: int
    payload: bytes
    version: int = 1

    @property
    def position(self) -> tuple[int, int]:
        """Return the sort key of the stream id: as text, 10-1 would come before 9-1."""
        return stream_position(self.stream_id)

    @property
    def is_newer(self) -> bool:
        """Tell whether a newer release wrote it in a form that this release cannot read."""
        return self.version > CHUNK_VERSION


def readable(shard: Shard, head: Sequence[HeadChunk]) -> list[HeadChunk]:
    """Return the chunks before the first that a newer release wrote.

    Raises: NewerChunkError if there are chunks, but none before that one.
    """
    newer = next((n for n, chunk in enumerate(head) if chunk.is_newer), len(head))
    if newer == 0 and head:
        raise NewerChunkError(shard, head[0].version, CHUNK_VERSION)
    return list(head[:newer])


def stream_position(stream_id: StreamId) -> tuple[int, int]:
    """Split a stream id into milliseconds and sequence number."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence)


def head_chunk(stream_id: bytes, fields: dict[bytes, bytes]) -> HeadChunk:
    """Read an entry leniently: a foreign entry becomes a chunk that fails to decode later."""
    business = fields.get(b"b", b"")[:ID_LENGTH_MAX].decode(errors="replace").replace("\0", " ")
    return HeadChunk(
        StreamId(stream_id.decode()),
        BusinessId(business),
        _number(fields.get(b"n", b""), EVENTS_DIGITS_MAX),
        _number(fields.get(b"t", b""), TOTAL_DIGITS_MAX),
        fields.get(b"e", b""),
        _number(fields.get(b"v", b""), VERSION_DIGITS_MAX) or 1,
    )


def _number(text: bytes, digits_max: int) -> int:
    """Read a count. Returns 0 for a text that our scripts cannot have written."""
    return int(text) if text.isdigit() and len(text) <= digits_max else 0
