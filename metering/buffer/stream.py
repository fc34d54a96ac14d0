"""The usage buffer: append chunks, read the head, trim what was committed.

The head of a stream is the work: there is no consumer group and no second state. What was read is
deleted by id after the Postgres commit; whatever dies before that reads the same head again.
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

from metering.buffer.chunk import (
    CHUNK_VERSION,
    BufferedEvent,
    EventColumns,
    chunk_of,
    encode_lines,
)
from metering.buffer.durability import Durability, Strict
from metering.buffer.entry import HeadChunk, head_chunk
from metering.buffer.keys import (
    BACKLOG,
    PULSE,
    Epoch,
    Shard,
    StreamId,
    account_key,
    attempts_key,
    stream_key,
)
from metering.buffer.room import Room, is_full
from metering.buffer.shard import shard_of
from metering.errors import (
    BufferFullError,
    BufferUnavailableError,
    ShardMismatchError,
)
from metering.ids import BusinessId

HEAD_CHUNKS_FIRST: Final = 64
HEAD_CHUNKS_MAX: Final = 4096
RETRY_AFTER_FULL_S: Final = 5
PULSE_TTL_S: Final = 60

_COUNTERS: Final = ("accepted", "settled", "accepted_bytes", "settled_bytes")

log = logging.getLogger("metering.buffer")


@dataclass(frozen=True, slots=True)
class Account:
    """What Redis says of a shard: events ever appended and ever trimmed in this epoch."""

    epoch: Epoch
    accepted: int
    settled: int

    @property
    def buffered(self) -> int:
        """Events in the stream now."""
        return self.accepted - self.settled


@dataclass(frozen=True, slots=True)
class Backlog:
    """All shards together, and which of them hold work.

    `is_sound`: no shard with an empty stream counts anything as buffered.
    """

    events: int
    bytes: int
    busy: tuple[Shard, ...]
    is_sound: bool = True


def connect(url: str, *, timeout_s: float) -> "Redis":
    """Return a client that answers or fails within `timeout_s`.

    One retry on a dropped connection, because a pool keeps sockets that a restart of Redis has
    closed; none on a timeout, so that a black-holed Redis costs one timeout and not two.

    Raises:
        ValueError: the address cannot be read.

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
        # It names parameters, which the query gave; never a value that could be secret.
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
        folder = files("metering.buffer")
        self._append = redis.register_script((folder / "append.lua").read_text())
        self._begin = redis.register_script((folder / "begin.lua").read_text())
        self._trim = redis.register_script((folder / "trim.lua").read_text())
        self._reconcile = redis.register_script((folder / "reconcile.lua").read_text())

    def append(
        self, business_id: BusinessId, events: Sequence[BufferedEvent] | EventColumns
    ) -> None:
        """Hold `events` as the durability mode promises: all, or none of them.

        One round trip. A repetition with the same event ids is harmless.

        Raises:
            BufferFullError: above the high-water mark, or Redis has no room for more; nothing was
                taken.
            BufferUnavailableError: Redis is away. The events may be held all the same (an answer
                can be lost), so try again with the same ids.
            DurabilityError: strict mode, and this Redis cannot keep its promise.
            ShardMismatchError: other processes spread events over another number of shards.

        """
        columns = events if isinstance(events, EventColumns) else EventColumns.of(events)
        if not columns.event_ids:
            return
        keys: list[str] = [BACKLOG]
        chunks: list[str | int | bytes] = []
        for shard, lines in self._by_shard(business_id, columns).items():
            keys += (stream_key(shard), account_key(shard))
            chunks += (len(lines), chunk_of(lines))
        try:
            self.check_durability()
            taken = int(self._append(keys, [*self._terms(business_id), *chunks]))
        except RedisError as error:
            if is_full(error):
                raise BufferFullError(RETRY_AFTER_FULL_S) from error
            raise BufferUnavailableError(type(error).__name__) from error
        if taken < 0:
            raise ShardMismatchError(len(self.shards), -taken)
        if taken == 0:
            raise BufferFullError(RETRY_AFTER_FULL_S)

    def _terms(self, business_id: BusinessId) -> tuple[str | int, ...]:
        """Return what the script is told besides the chunks."""
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
        """Check that Redis can keep what the durability mode promises.

        Raises:
            DurabilityError: it cannot.
            RedisError: Redis is away.

        """
        if self._strict is not None:
            self._strict.check()

    def backlog(self) -> Backlog:
        """Look at all shards in one round trip.

        Raises:
            ShardMismatchError: some of what is buffered lies in shards this process does not know.

        """
        pipe = self.redis.pipeline(transaction=False)
        pipe.hmget(BACKLOG, ["events", "bytes", "shards"])
        for shard in self.shards:
            pipe.xlen(stream_key(shard))
        for shard in self.shards:
            pipe.hmget(account_key(shard), _COUNTERS)
        held, *looks = pipe.execute()
        lengths, accounts = looks[: len(self.shards)], looks[len(self.shards) :]
        events, size_bytes = int(held[0] or 0), int(held[1] or 0)
        self._check_shards(*held)
        busy = tuple(s for s, length in zip(self.shards, lengths, strict=True) if length)
        is_off = any(
            _holds(account) for account, length in zip(accounts, lengths, strict=True) if not length
        )
        # A sum of empty streams that is not zero, also where their accounts are gone.
        is_off |= not busy and bool(events or size_bytes)
        return Backlog(events, size_bytes, busy, is_sound=not is_off)

    def held_events(self) -> int:
        """Return how many events are buffered, in whatever shards."""
        return int(self.redis.hget(BACKLOG, "events") or 0)

    def check_shards(self) -> None:
        """Check that this process knows all shards that hold events.

        Raises:
            ShardMismatchError: it does not.

        """
        fields = ["events", "bytes", "shards"]
        self._check_shards(*cast("list[bytes | None]", self.redis.hmget(BACKLOG, fields)))

    def _check_shards(self, events: bytes | None, _: bytes | None, shards: bytes | None) -> None:
        ours = len(self.shards)
        if int(events or 0) > 0 and int(shards or ours) != ours:
            raise ShardMismatchError(ours, int(shards or ours))

    def sweep(self) -> Backlog:
        """Look at all shards, and leave the pulse that tells others that someone does.

        Raises:
            ShardMismatchError: see `backlog`.

        """
        seen = self.backlog()
        if not seen.is_sound:
            self._put_right()
        try:
            self.redis.set(PULSE, 1, ex=PULSE_TTL_S)
        except ResponseError as error:
            if not is_full(error):
                raise
        return seen

    def _put_right(self) -> None:
        """Put the counters of empty streams right: a mark that nothing fills must refuse nothing.

        No money is in them: what was settled is known by the keys of the events, and what is
        missing by the cursors.
        """
        keys = chain.from_iterable((stream_key(s), account_key(s)) for s in self.shards)
        off = cast("list[int]", self._reconcile([BACKLOG, *keys]))
        for shard, events in zip(self.shards, off, strict=True):
            if events:
                log.warning(
                    "the counters of shard %d were off by %d events and are put right:"
                    " its stream is empty",
                    shard,
                    events,
                )

    def read_head(
        self, shard: Shard, events_max: int, after: StreamId | None = None
    ) -> list[HeadChunk]:
        """Return the oldest chunks of a shard, about `events_max` events, at least one chunk.

        One `XRANGE`; how many chunks to ask for is learned from the reads before.
        """
        rows = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            self.redis.xrange(
                stream_key(shard),
                min="-" if after is None else f"({after}",
                count=self._chunks_per_read[shard],
            ),
        )
        head: list[HeadChunk] = []
        events = 0
        for stream_id, fields in rows:
            chunk = head_chunk(stream_id, fields)
            if head and events + chunk.event_count > events_max:
                break
            head.append(chunk)
            events += chunk.event_count
        self._learn(shard, asked=len(rows), events_max=events_max, head=head)
        return head

    def waits_for_upgrade(self, shard: Shard) -> bool:
        """Tell whether only a newer release can read the shard's oldest chunk."""
        oldest = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            self.redis.xrange(stream_key(shard), count=1),
        )
        return any(head_chunk(*row).is_newer for row in oldest)

    def read_tails(
        self, ends: Mapping[Shard, str], chunks_max: int
    ) -> dict[Shard, list[HeadChunk]]:
        """Return up to `chunks_max` of the newest chunks of shards, newest first.

        ends  per shard, up to which stream id: `+` is the newest, `(…` before that one
        """
        pipe = self.redis.pipeline(transaction=False)
        for shard, end in ends.items():
            pipe.xrevrange(stream_key(shard), max=end, count=chunks_max)
        tails = cast("list[list[tuple[bytes, dict[bytes, bytes]]]]", pipe.execute())
        return {
            shard: [head_chunk(*row) for row in rows]
            for shard, rows in zip(ends, tails, strict=True)
        }

    def _learn(self, shard: Shard, *, asked: int, events_max: int, head: list[HeadChunk]) -> None:
        if asked and head:
            mean = sum(chunk.event_count for chunk in head) / len(head) or 1
            # At most twice as many as before: the next chunks may be a thousand times as large.
            self._chunks_per_read[shard] = min(
                HEAD_CHUNKS_MAX, 2 * self._chunks_per_read[shard], int(events_max / mean) + 1
            )

    def trim(self, shard: Shard, chunks: Sequence[HeadChunk]) -> int:
        """Delete exactly these chunks, after the commit. Return how many were still there."""
        keys = [stream_key(shard), account_key(shard), BACKLOG, attempts_key(shard)]
        arguments: list[str | int] = []
        for chunk in chunks:
            ours = chunk.accepted_total > 0  # what no append counted, no trim takes off
            size = (chunk.event_count, len(chunk.payload)) if ours else (0, 0)
            arguments += (chunk.stream_id, *size)
        return int(self._trim(keys, arguments))

    def begin(self, shard: Shard, head: StreamId) -> int:
        """Count an attempt at this head; return the how-manieth it is. Killed attempts count."""
        return int(self._begin([attempts_key(shard)], [head]))

    def forget_attempts(self, shard: Shard) -> None:
        """Forget the attempts at a head: the one that counted them came back."""
        self.redis.delete(attempts_key(shard))

    def account(self, shard: Shard) -> Account:
        """Return the shard's counters; all zero and a nameless epoch if nothing ever came."""
        epoch, accepted, settled = cast(
            "list[bytes | None]",
            self.redis.hmget(account_key(shard), ["epoch", "accepted", "settled"]),
        )
        return Account(Epoch((epoch or b"").decode()), int(accepted or 0), int(settled or 0))


def _holds(counters: Sequence[bytes | None]) -> bool:
    """Tell whether an account says that something is buffered, or less than nothing."""
    accepted, settled, accepted_bytes, settled_bytes = (int(figure or 0) for figure in counters)
    return accepted != settled or accepted_bytes != settled_bytes


def agreed_shards(redis: "Redis") -> int | None:
    """Return over how many shards the last append spread its events; None: there was none."""
    agreed = cast("bytes | None", redis.hget(BACKLOG, "shards"))
    return None if agreed is None else int(agreed)
