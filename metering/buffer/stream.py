"""The usage buffer: append chunks, read the head, trim after the commit.

The head of a stream is the work: there is no consumer group and no second state. A drain deletes
the chunks that it read by their ids, after the Postgres commit. If it dies before that, the next
drain reads the same head again.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, repeat
from typing import Final, cast
from uuid import uuid4

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from metering.buffer.chunk import CHUNK_VERSION, BufferedEvent, EventColumns, chunk_of, encode_lines
from metering.buffer.durability import Durability, Strict
from metering.buffer.entry import HeadChunk, head_chunk
from metering.buffer.keys import (
    BACKLOG,
    PULSE,
    Epoch,
    Shard,
    StreamId,
    attempts_key,
    counters_key,
    stream_key,
)
from metering.buffer.room import Room, is_full
from metering.buffer.shard import shard_of
from metering.errors import BufferFullError, BufferUnavailableError, ShardMismatchError
from metering.ids import BusinessId

HEAD_CHUNKS_FIRST: Final = 64
HEAD_CHUNKS_MAX: Final = 4096
RETRY_AFTER_FULL_S: Final = 5
PULSE_TTL_S: Final = 60

_COUNTERS: Final = ("accepted", "settled", "accepted_bytes", "settled_bytes")
_BACKLOG: Final = ("events", "bytes", "shards")

# What XRANGE gives: stream ids with their fields.
_Entries = list[tuple[bytes, dict[bytes, bytes]]]

log = logging.getLogger("metering.buffer")


@dataclass(frozen=True, slots=True)
class ShardCounters:
    """The counters of a shard in Redis: events ever appended and ever trimmed in this epoch."""

    epoch: Epoch
    accepted: int
    settled: int

    @property
    def buffered(self) -> int:
        """Events in the stream now."""
        return self.accepted - self.settled


@dataclass(frozen=True, slots=True)
class Backlog:
    """All shards together, and those that hold work.

    `is_sound` is false if the counters say that an empty stream holds something.
    """

    events: int
    bytes: int
    busy: tuple[Shard, ...]
    is_sound: bool = True


def connect(url: str, *, timeout_s: float) -> "Redis":
    """Return a client that answers or fails within `timeout_s`.

    It tries again once on a lost connection, because a pool keeps sockets that a restart of Redis
    has closed. It does not on a timeout, so that a black-holed Redis costs one timeout, not two.

    Raises: ValueError if the address cannot be read.
    """
    client = Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        health_check_interval=15,
    )
    pool = client.connection_pool
    try:
        pool.connection_class(**pool.connection_kwargs)  # nothing is connected
    except (TypeError, RedisError) as error:
        # The message names parameters of the query, never a value that could be secret.
        raise ValueError(f"a parameter of the address cannot be used: {error}") from error
    return client


class UsageBuffer:
    """The buffer in one Redis primary. Thread-safe, as the client is; not for use over a fork."""

    def __init__(
        self,
        redis: "Redis",
        *,
        shards: int,
        high_water_events: int,
        high_water_bytes: int,
        durability: Durability = "everysec",
    ) -> None:
        self.redis = redis
        self.shards = tuple(Shard(number) for number in range(shards))
        self._high_water_events = high_water_events
        self._room = Room(redis, high_water_bytes)
        self._strict = None if durability == "everysec" else Strict(redis, durability)
        self._chunks_per_read = dict.fromkeys(self.shards, HEAD_CHUNKS_FIRST)
        folder = files("metering.buffer") / "lua"
        self._append, self._begin, self._trim, self._reconcile, self._oldest = (
            redis.register_script((folder / f"{name}.lua").read_text())
            for name in ("append", "begin", "trim", "reconcile", "oldest")
        )

    def append(
        self, business_id: BusinessId, events: Sequence[BufferedEvent] | EventColumns
    ) -> None:
        """Buffer all of `events` or none, in one round trip, as the durability mode promises.

        A repetition with the same event ids is harmless.

        Raises:
            BufferFullError: the buffer is above the high-water mark, or Redis has no room.
            BufferUnavailableError: Redis is away. The answer alone may be lost, so the events may
                be buffered: try again with the same ids.
            DurabilityError: strict mode, and this Redis cannot keep the promise.
            ShardMismatchError: other processes spread events over another number of shards.

        """
        columns = events if isinstance(events, EventColumns) else EventColumns.of(events)
        if not columns.event_ids:
            return
        keys: list[str] = [BACKLOG]
        chunks: list[str | int | bytes] = []
        for shard, lines in self._by_shard(business_id, columns).items():
            keys += (stream_key(shard), counters_key(shard))
            chunks += (len(lines), chunk_of(lines))
        try:
            self.check_durability()
            taken = int(self._append(keys, [*self._arguments(business_id), *chunks]))
        except RedisError as error:
            if is_full(error):
                raise BufferFullError(RETRY_AFTER_FULL_S) from error
            raise BufferUnavailableError(type(error).__name__) from error
        if taken < 0:
            raise ShardMismatchError(len(self.shards), -taken)
        if taken == 0:
            raise BufferFullError(RETRY_AFTER_FULL_S)

    def _arguments(self, business_id: BusinessId) -> tuple[str | int, ...]:
        """Return the arguments of the script before the chunks."""
        marks = (self._high_water_events, self._room.mark_bytes())
        return (*marks, uuid4().hex, business_id, len(self.shards), CHUNK_VERSION)

    def _by_shard(self, business_id: BusinessId, events: EventColumns) -> dict[Shard, list[str]]:
        """Return the lines of the chunks."""
        chunks: dict[Shard, list[str]] = defaultdict(list)
        shards = map(shard_of, repeat(business_id), events.customer_ids, repeat(len(self.shards)))
        for shard, line in zip(shards, encode_lines(business_id, events), strict=True):
            chunks[shard].append(line)
        return chunks

    def check_durability(self) -> None:
        """Check that Redis can keep the promise of the durability mode.

        Raises: DurabilityError if it cannot; RedisError if Redis is away.
        """
        if self._strict is not None:
            self._strict.check()

    def backlog(self) -> Backlog:
        """Look at all shards in one round trip.

        Raises: ShardMismatchError if events lie in shards that this process does not know.
        """
        pipe = self.redis.pipeline(transaction=False)
        pipe.hmget(BACKLOG, _BACKLOG)
        for shard in self.shards:
            pipe.xlen(stream_key(shard))
        for shard in self.shards:
            pipe.hmget(counters_key(shard), _COUNTERS)
        held, *looks = pipe.execute()
        lengths, counters = looks[: len(self.shards)], looks[len(self.shards) :]
        events, size_bytes = int(held[0] or 0), int(held[1] or 0)
        self._check_shards(*held)
        busy = tuple(s for s, length in zip(self.shards, lengths, strict=True) if length)
        is_off = any(
            _holds(each) for each, length in zip(counters, lengths, strict=True) if not length
        )
        # All streams are empty but their sum is not zero: the counters may be gone.
        is_off |= not busy and bool(events or size_bytes)
        return Backlog(events, size_bytes, busy, is_sound=not is_off)

    def held_events(self) -> int:
        """Return how many events are buffered, in whatever shards."""
        return int(self.redis.hget(BACKLOG, "events") or 0)

    def oldest_age_s(self) -> float | None:
        """Return how long the oldest chunk has waited. Returns None if nothing is buffered."""
        waited_ms = int(self._oldest([stream_key(shard) for shard in self.shards]))
        return None if waited_ms < 0 else waited_ms / 1000

    def check_shards(self) -> None:
        """Check that this process knows all shards that hold events.

        Raises: ShardMismatchError if it does not.
        """
        self._check_shards(*cast("list[bytes | None]", self.redis.hmget(BACKLOG, _BACKLOG)))

    def _check_shards(self, events: bytes | None, _: bytes | None, shards: bytes | None) -> None:
        ours = len(self.shards)
        if int(events or 0) > 0 and int(shards or ours) != ours:
            raise ShardMismatchError(ours, int(shards or ours))

    def sweep(self) -> Backlog:
        """Look at all shards, correct false counters, and leave the pulse that others watch.

        Raises: ShardMismatchError if events lie in shards that this process does not know.
        """
        seen = self.backlog()
        if not seen.is_sound:
            self._correct_counters()
        try:
            self.redis.set(PULSE, 1, ex=PULSE_TTL_S)
        except ResponseError as error:
            if not is_full(error):
                raise
        return seen

    def _correct_counters(self) -> None:
        """Correct the counters of empty streams, so that an empty buffer never counts as full.

        No money depends on them: event keys prove what was settled, cursors show what is missing.
        """
        keys = chain.from_iterable((stream_key(s), counters_key(s)) for s in self.shards)
        off = cast("list[int]", self._reconcile([BACKLOG, *keys]))
        for shard, events in zip(self.shards, off, strict=True):
            if events:
                log.warning(
                    "the counters of shard %d were off by %d events and are corrected:"
                    " its stream is empty",
                    shard,
                    events,
                )

    def read_head(
        self, shard: Shard, events_max: int, after: StreamId | None = None
    ) -> list[HeadChunk]:
        """Return the oldest chunks of a shard, about `events_max` events, at least one chunk.

        It is one `XRANGE`; earlier reads decide for how many chunks it asks.
        """
        entries = cast(
            "_Entries",
            self.redis.xrange(
                stream_key(shard),
                min="-" if after is None else f"({after}",
                count=self._chunks_per_read[shard],
            ),
        )
        head: list[HeadChunk] = []
        events = 0
        for stream_id, fields in entries:
            chunk = head_chunk(stream_id, fields)
            if head and events + chunk.event_count > events_max:
                break
            head.append(chunk)
            events += chunk.event_count
        if head:
            mean = events / len(head) or 1
            # At most twice as many as before: the next chunks may be a thousand times as large.
            self._chunks_per_read[shard] = min(
                HEAD_CHUNKS_MAX, 2 * self._chunks_per_read[shard], int(events_max / mean) + 1
            )
        return head

    def waits_for_upgrade(self, shard: Shard) -> bool:
        """Tell whether only a newer release can read the shard's oldest chunk."""
        oldest = cast("_Entries", self.redis.xrange(stream_key(shard), count=1))
        return any(head_chunk(*entry).is_newer for entry in oldest)

    def read_tails(
        self, ends: Mapping[Shard, str], chunks_max: int
    ) -> dict[Shard, list[HeadChunk]]:
        """Return up to `chunks_max` of the newest chunks of each shard in `ends`, newest first.

        Each end is a stream id: `+` is the newest, `(…` is the one before.
        """
        pipe = self.redis.pipeline(transaction=False)
        for shard, end in ends.items():
            pipe.xrevrange(stream_key(shard), max=end, count=chunks_max)
        tails = cast("list[_Entries]", pipe.execute())
        return {
            shard: [head_chunk(*entry) for entry in entries]
            for shard, entries in zip(ends, tails, strict=True)
        }

    def trim(self, shard: Shard, chunks: Sequence[HeadChunk]) -> int:
        """Delete exactly these chunks, after the commit. Return how many were still there."""
        keys = [stream_key(shard), counters_key(shard), BACKLOG, attempts_key(shard)]
        arguments: list[str | int] = []
        for chunk in chunks:
            ours = chunk.accepted_total > 0  # no append counted a foreign entry
            size = (chunk.event_count, len(chunk.payload)) if ours else (0, 0)
            arguments += (chunk.stream_id, *size)
        return int(self._trim(keys, arguments))

    def begin(self, shard: Shard, head: StreamId) -> int:
        """Count an attempt at this head, and return its number. Killed attempts count."""
        return int(self._begin([attempts_key(shard)], [head]))

    def forget_attempts(self, shard: Shard) -> None:
        """Forget the attempts at a head: the process that counted them survived."""
        self.redis.delete(attempts_key(shard))

    def counters(self, shard: Shard) -> ShardCounters:
        """Return the shard's counters; zeros and an empty epoch if nothing ever came."""
        epoch, accepted, settled = cast(
            "list[bytes | None]",
            self.redis.hmget(counters_key(shard), ["epoch", "accepted", "settled"]),
        )
        return ShardCounters(Epoch((epoch or b"").decode()), int(accepted or 0), int(settled or 0))


def _holds(counters: Sequence[bytes | None]) -> bool:
    """Tell whether the counters say that something is buffered, or less than nothing."""
    accepted, settled, accepted_bytes, settled_bytes = (int(figure or 0) for figure in counters)
    return accepted != settled or accepted_bytes != settled_bytes


def agreed_shards(redis: "Redis") -> int | None:
    """Return over how many shards the last append spread its events. Returns None if none did."""
    agreed = cast("bytes | None", redis.hget(BACKLOG, "shards"))
    return None if agreed is None else int(agreed)
