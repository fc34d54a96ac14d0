"""What the demo sees of both stores while it runs: one sample after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import sub
from typing import Any, Final, NamedTuple

import psycopg
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from metering import db
from metering.buffer.keys import Shard
from metering.buffer.stream import ShardCounters, UsageBuffer
from metering.debit.write import Outcome
from metering.ids import CustomerId
from metering.usage import statements as usage
from worker.demo import statements

STORE_AWAY: Final = (RedisError, SQLAlchemyError, psycopg.Error)


class Counts(NamedTuple):
    """Events: accepted by Redis, still in it, and where the others ended."""

    accepted: int = 0
    buffered: int = 0
    posted: int = 0
    duplicate: int = 0
    refused: int = 0
    unmetered: int = 0

    @property
    def ended(self) -> int:
        """Events that are no longer buffered."""
        return self.posted + self.duplicate + self.refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at both stores. A store in `away` did not answer: its figures are older.

    `lag_s`: the age of the oldest buffered chunk. `before`: the counts at the start of this run.
    """

    shards: Mapping[Shard, ShardCounters] = field(default_factory=dict)
    ended: Outcome = field(default_factory=Outcome)
    lag_s: float = 0.0
    balances: Mapping[CustomerId, int] = field(default_factory=dict)
    away: Sequence[str] = ()
    before: Counts = field(default_factory=Counts)

    @property
    def counts(self) -> Counts:
        """The events of this run."""
        accepted = sum(shard.accepted for shard in self.shards.values())
        buffered = sum(shard.buffered for shard in self.shards.values())
        ended = self.ended
        ends = (ended.posted, ended.duplicate, ended.refused, ended.unmetered)
        return Counts(*map(sub, (accepted, buffered, *ends), self.before))

    @property
    def is_drained(self) -> bool:
        """Whether every accepted event has ended."""
        counts = self.counts
        return not self.away and not counts.buffered and counts.ended == counts.accepted


class Watch:
    """Takes samples, and keeps the last one."""

    def __init__(self, transaction: db.Transactions, buffer: UsageBuffer) -> None:
        self._transaction, self._buffer = transaction, buffer
        self.customers: Sequence[CustomerId] = ()
        self.last = Sample()

    def begin(self) -> None:
        """Count from now: an older run on the same data has counts of its own."""
        sample = self.look()
        self.last = replace(sample, before=sample.counts)

    def look(self) -> Sample:
        """Take a sample."""
        sample = replace(self.last, away=())
        for store, read in (("redis", self._redis), ("postgres", self._postgres)):
            try:
                sample = replace(sample, **read())
            except STORE_AWAY:
                sample = replace(sample, away=(*sample.away, store))
        self.last = sample
        return sample

    def _redis(self) -> dict[str, Any]:
        shards = {shard: self._buffer.counters(shard) for shard in self._buffer.shards}
        return {"shards": shards, "lag_s": self._buffer.oldest_age_s() or 0.0}

    def _postgres(self) -> dict[str, Any]:
        with self._transaction() as conn:
            ended = db.row(Outcome, conn.execute(usage.TOTALS).one())
            rows = conn.execute(statements.BALANCES, {"customer_ids": list(self.customers)})
            return {"ended": ended, "balances": {r.customer_id: r.balance_minor for r in rows}}
