"""An entry of a stream, as it is read: a chunk whose events are still bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from metering.buffer.chunk import CHUNK_VERSION
from metering.buffer.keys import Shard, StreamId
from metering.errors import NewerChunkError
from metering.ids import BusinessId

# What an entry that is not ours may claim: no more than the columns of a batch can count.
EVENTS_DIGITS_MAX: Final = 6
TOTAL_DIGITS_MAX: Final = 18
VERSION_DIGITS_MAX: Final = 4
ID_LENGTH_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class HeadChunk:
    """One stream entry, as read: its events are still bytes.

    `accepted_total`: events that the shard had accepted with this chunk, so that the reader sees
    a gap; 0 for an entry that is not ours. `version`: of the form of its events, see `keys`.
    """

    stream_id: StreamId
    business_id: BusinessId
    event_count: int
    accepted_total: int
    payload: bytes
    version: int = 1

    @property
    def position(self) -> tuple[int, int]:
        """Return what orders stream ids: as text, 10-1 would come before 9-1."""
        return stream_position(self.stream_id)

    @property
    def is_newer(self) -> bool:
        """Tell whether a newer release wrote it in a form that this one cannot read."""
        return self.version > CHUNK_VERSION


def readable(shard: Shard, head: Sequence[HeadChunk]) -> list[HeadChunk]:
    """Return the chunks before the first that a newer release wrote.

    Raises:
        NewerChunkError: that is the first of all.

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
    """Read an entry leniently: what is not ours becomes a chunk that fails to decode later."""
    return HeadChunk(
        StreamId(stream_id.decode()),
        BusinessId(
            fields.get(b"b", b"")[:ID_LENGTH_MAX].decode(errors="replace").replace("\0", " ")
        ),
        _number(fields.get(b"n", b""), EVENTS_DIGITS_MAX),
        _number(fields.get(b"t", b""), TOTAL_DIGITS_MAX),
        fields.get(b"e", b""),
        _number(fields.get(b"v", b""), VERSION_DIGITS_MAX) or 1,
    )


def _number(text: bytes, digits_max: int) -> int:
    """Read a count; what no append of ours could have written counts as nothing."""
    return int(text) if text.isdigit() and len(text) <= digits_max else 0
