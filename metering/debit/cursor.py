"""The cursor of a shard: how far the ledger followed its stream, and whether events are missing.

It counts events and never decides about money; the event keys do. A chunk says how many events its
shard had accepted with it. If that total jumps, chunks vanished before they were read; if it falls
back, Redis came back with an older state.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from sqlalchemy import Connection

from metering import db
from metering.buffer.entry import HeadChunk, stream_position
from metering.buffer.keys import Epoch, Shard, StreamId
from metering.debit import statements

START: Final = StreamId("0-0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """One shard in one epoch of its stream; counts of events."""

    shard: Shard
    epoch: Epoch
    last_stream_id: StreamId = START
    accepted_count: int = 0
    settled_count: int = 0
    lost_count: int = 0
    rewound_count: int = 0

    def after(self, chunk: HeadChunk) -> "Cursor":
        """Return the cursor past one more chunk."""
        gap = chunk.accepted_total - chunk.event_count - self.accepted_count
        return replace(
            self,
            last_stream_id=chunk.stream_id,
            accepted_count=chunk.accepted_total,
            settled_count=self.settled_count + chunk.event_count,
            lost_count=self.lost_count + max(gap, 0),
            rewound_count=self.rewound_count + max(-gap, 0),
        )


def read_cursor(conn: Connection, shard: Shard, epoch: Epoch) -> Cursor:
    """Return the shard's cursor, at the start if this epoch is new."""
    row = conn.execute(statements.CURSOR, {"shard": shard, "epoch": epoch}).one_or_none()
    return db.row(Cursor, row) if row else Cursor(shard=shard, epoch=epoch)


def read_cursors(conn: Connection) -> list[Cursor]:
    """Return the cursors of all shards and epochs."""
    return db.rows(Cursor, conn.execute(statements.CURSORS))


def advance(conn: Connection, cursor: Cursor, head: Sequence[HeadChunk]) -> None:
    """Move the cursor over the chunks of a head that it has not passed yet."""
    settled_to = stream_position(cursor.last_stream_id)
    new = [chunk for chunk in head if chunk.position > settled_to and chunk.accepted_total]
    for chunk in new:
        cursor = cursor.after(chunk)
    if new:
        conn.execute(statements.ADVANCE_CURSOR, asdict(cursor))
