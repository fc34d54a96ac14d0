"""Every key that Gullak uses in Redis (Celery's own live in the broker's database).

gullak:usage:{NN}           STREAM  the buffered usage of shard NN; an entry is a chunk: fields
                                    `b` business id, `n` number of events, `t` events that the
                                    shard had accepted with it, `v` version of the form of `e`
                                    (absent: 1), `e` the events (lines)
gullak:usage:{NN}:account   HASH    the shard's counters: `epoch` random name of this life of the
                                    stream; `accepted`, `settled` events ever appended and ever
                                    trimmed in it; `accepted_bytes`, `settled_bytes` in bytes
gullak:usage:backlog        HASH    `events`, `bytes` now in all streams, for the high-water mark;
                                    `shards` over which they are spread
gullak:usage:{NN}:attempts  HASH    `head` stream id, `count` how often a drain began with it
gullak:debit:pulse          STRING  when shards were last swept; expires
gullak:quantities           HASH    business id -> JSON: event name -> summed properties; with it
                                    the API refuses events that the drain could only dead-letter
gullak:faults               HASH    part of a worker -> until when (Unix seconds) its fault is
                                    shown, and the cause of a failing server; expires
gullak:faults:told:CAUSE    STRING  a log line named this cause within the last minute; expires
gullak:rate:LIMITER/…       STRING  requests of an API key in this window, over all API processes;
                                    the library that counts chooses the rest of the name; expires

An upgrade runs old and new processes side by side, so the form of `e` has a version,
`chunk.CHUNK_VERSION`. A change of the form raises it, and the new release still reads the old one.
A drain that meets a newer version than its own leaves the chunk at the head, reports it, and reads
it once the worker is upgraded. Therefore upgrade the workers first, then the processes that append
(the API, programs with a `Meter`). To go back, do the opposite, with an empty buffer.
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


def counters_key(shard: Shard) -> str:
    """Return the key of a shard's counters."""
    return f"{stream_key(shard)}:account"


def attempts_key(shard: Shard) -> str:
    """Return the key that counts how often a drain began with the shard's head."""
    return f"{stream_key(shard)}:attempts"
