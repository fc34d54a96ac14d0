"""What the demo looks at while it runs: one sample of both stores, whatever is away just now."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

import psycopg
from redis.exceptions import RedisError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from metering.buffer.entry import stream_position
from metering.buffer.keys import Shard, StreamId, counters_key, stream_key
from metering.buffer.stream import UsageBuffer
from metering.db import Transactions
from metering.ids import CustomerId
from metering.usage import statements as usage
from worker.demo import statements

STORE_AWAY: Final = (RedisError, SQLAlchemyError, psycopg.Error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Events: taken into Redis, still in it, and where the others ended by the batches."""

    accepted: int = 0
    buffered: int = 0
    posted: int = 0
    duplicate: int = 0
    refused: int = 0
    unmetered: int = 0
    replayed: int = 0

    @property
    def settled(self) -> int:
        """Events that ended somewhere."""
        return self.posted + self.duplicate + self.refused

    def since(self, before: "Counts") -> "Counts":
        """Return what has come to these counts since `before`."""
        return Counts(
            **{name: getattr(self, name) - getattr(before, name) for name in Counts.__slots__}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look: `at_s` by the monotonic clock; `lag_s` the age of the oldest buffered chunk."""

    at_s: float = 0.0
    counts: Counts = Counts()
    lag_s: float = 0.0
    balances: Mapping[str, int] = field(default_factory=dict)
    away: tuple[str, ...] = ()


class Watch:
    """Takes samples. What a store that is away would say stays as it was."""

    def __init__(self, transaction: Transactions, buffer: UsageBuffer) -> None:
        self._transaction = transaction
        self._buffer = buffer
        self._before = Counts()
        self.customers: Sequence[CustomerId] = ()
        self.last = Sample()

    def begin(self) -> None:
        """Count from here: an older run on the same data has counts of its own."""
        with self._transaction() as conn:
            self._before = replace(_totals(conn), accepted=self._accounts()[0])

    def counts(self) -> Counts:
        """Return the counts of this run, or raise what says that a store is away."""
        with self._transaction() as conn:
            totals = _totals(conn)
        accepted, buffered, _lag_s = self._accounts()
        return replace(totals, accepted=accepted, buffered=buffered).since(self._before)

    def look(self) -> Sample:
        """Take a sample, and keep it as `last`."""
        away: list[str] = []
        values = {name: getattr(self.last.counts, name) for name in Counts.__slots__}
        lag_s, balances = self.last.lag_s, self.last.balances
        try:
            accepted, buffered, lag_s = self._accounts()
            values |= {"accepted": accepted - self._before.accepted, "buffered": buffered}
        except RedisError:
            away.append("redis")
        try:
            posted, balances = self._postgres()
            values |= posted
        except (SQLAlchemyError, psycopg.Error):
            away.append("postgres")
        self.last = Sample(
            at_s=time.monotonic(),
            counts=Counts(**values),
            lag_s=lag_s,
            balances=balances,
            away=tuple(away),
        )
        return self.last

    def _postgres(self) -> tuple[dict[str, int], dict[str, int]]:
        names = ("posted", "duplicate", "refused", "unmetered", "replayed")
        with self._transaction() as conn:
            totals = _totals(conn).since(self._before)
            rows = conn.execute(statements.BALANCES, {"customer_ids": list(self.customers)})
            balances = {row.customer_id: row.balance_minor for row in rows}
        return {name: getattr(totals, name) for name in names}, balances

    def _accounts(self) -> tuple[int, int, float]:
        """Return events ever accepted and now buffered, and the age of the oldest chunk in s."""
        shards: tuple[Shard, ...] = self._buffer.shards
        pipe = self._buffer.redis.pipeline(transaction=False)
        pipe.time()
        for shard in shards:
            pipe.hmget(counters_key(shard), ["accepted", "settled"])
        for shard in shards:
            pipe.xrange(stream_key(shard), count=1)
        now, *rest = pipe.execute()
        accounts = cast("list[list[bytes | None]]", rest[: len(shards)])
        heads = cast("list[list[tuple[bytes, object]]]", rest[len(shards) :])
        accepted = sum(int(account[0] or 0) for account in accounts)
        settled = sum(int(account[1] or 0) for account in accounts)
        oldest_ms = [stream_position(_stream_id(head[0][0]))[0] for head in heads if head]
        now_s = now[0] + now[1] / 1_000_000
        lag_s = max(0.0, now_s - min(oldest_ms) / 1000) if oldest_ms else 0.0
        return accepted, accepted - settled, lag_s


def _stream_id(raw: bytes) -> StreamId:
    return StreamId(raw.decode())


def _totals(conn: Connection) -> Counts:
    row = conn.execute(usage.TOTALS).one()
    return Counts(**{name: int(value) for name, value in row._mapping.items()})  # noqa: SLF001
