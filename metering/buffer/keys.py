"""Every key that Gullak uses in Redis (Celery's own live in the broker's database).

gullak:usage:{NN}           STREAM  the buffered usage of shard NN; an entry is a chunk: fields
                                    `b` business id, `n` number of events, `t` how many this
                                    shard had accepted with it, `v` version of the form of
                                    `e` (absent: 1), `e` the events (lines)
gullak:usage:{NN}:account   HASH    `epoch` random name of this life of the stream; `accepted`,
                                    `settled` events ever appended and ever trimmed in it;
                                    `accepted_bytes`, `settled_bytes` the same in bytes
gullak:usage:backlog        HASH    `events`, `bytes` now in all streams: the high-water mark;
                                    `shards` over which they are spread
gullak:usage:{NN}:attempts  HASH    `head` stream id, `count` how often a drain began with it
gullak:debit:pulse          STRING  when shards were last swept; expires
gullak:quantities           HASH    business id -> JSON: event name -> summed properties, for the
                                    edge to refuse what the drain could only dead-letter
gullak:faults               HASH    part of a worker -> until when (Unix seconds) it is shown, and
                                    the cause for which a server fails it; expires
gullak:faults:told:CAUSE    STRING  a log line told of this cause in this minute; expires
gullak:rate:LIMITER/…       STRING  requests of an API key in this window, over all API processes;
                                    the rest of the name is of the library that counts; expires

An upgrade runs old and new processes side by side, so the form of `e` has a version,
`chunk.CHUNK_VERSION`. A change of the form raises it, and the new release still reads the old one.
A drain that meets a newer version than its own leaves the chunk at the head and says so; it is
read once the worker is upgraded. Therefore: upgrade the workers first, then what appends (the API,
programs with a `Meter`); to go back, the other way round, with an empty buffer.
"""

from typing import Final, NewType

Shard = NewType("Shard", int)
StreamId = NewType("StreamId", str)
Epoch = NewType("Epoch", str)

BACKLOG: Final = "gullak:usage:backlog"
PULSE: Final = "gullak:debit:pulse"
QUANTITIES: Final = "gullak:quantities"
RATE_LIMITS: Final = "gullak:rate"
FAULTS: Final = "gullak:faults"


def stream_key(shard: Shard) -> str:
    """Return the key of a shard's stream; the braces keep a shard's keys in one cluster slot."""
    return f"gullak:usage:{{{shard:02d}}}"


def account_key(shard: Shard) -> str:
    """Return the key of a shard's counters."""
    return f"{stream_key(shard)}:account"


def attempts_key(shard: Shard) -> str:
    """Return the key that counts how often a shard's head was begun."""
    return f"{stream_key(shard)}:attempts"
