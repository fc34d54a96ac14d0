import os
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from metering.buffer.chunk import CHUNK_VERSION
from metering.buffer.keys import BACKLOG, PULSE, Shard, counters_key, stream_key
from metering.buffer.stream import PULSE_TTL_S, UsageBuffer
from worker.alive import is_alive, touch
from worker.broker import BrokerAwayError
from worker.watchdog import log, run
from worker.watchdog.drain import DrainWatchdog, StandIn

STALLED_AFTER_S = 45.0
PERIODS_S = {"webhook.sweep": 1.0, "low_credit.check": 60.0, "debit.partition": 150.0}


@dataclass
class World:
    """A watchdog over a Redis in memory, with a clock that moves only by hand."""

    redis: FakeRedis = field(default_factory=FakeRedis)
    now: float = 1000.0
    postgres_answers: bool = True
    woken: list[int] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    drained_here: list[int] = field(default_factory=list)
    broker_is_away: bool = False
    gave_up: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        buffer = UsageBuffer(self.redis, shards=4, high_water_events=99, high_water_bytes=9999)
        self.watchdog = DrainWatchdog(
            buffer,
            stalled_after_s=STALLED_AFTER_S,
            postgres_works=lambda: self.postgres_answers,
            wake_drain=self.wake,
            drain_here=self.drained_here.extend,
            stand_in=StandIn(PERIODS_S, self.sent.append, lambda: self.now),
            give_up=self.gave_up.append,
            clock=lambda: self.now,
        )

    def wake(self, shard: int) -> None:
        if self.broker_is_away:
            raise BrokerAwayError("debit.drain", ConnectionError())
        self.woken.append(shard)

    def hold(self, shard: int, events: int, version: int = CHUNK_VERSION) -> None:
        fields: dict[Any, Any] = {"b": "bus", "n": events, "v": version, "e": "[]"}
        self.redis.xadd(stream_key(Shard(shard)), fields)
        self.redis.hset(counters_key(Shard(shard)), mapping={"epoch": "e", "accepted": events})
        self.redis.hset(BACKLOG, mapping={"events": events, "bytes": 2})

    def settle(self, shard: int, events: int) -> None:
        self.redis.hset(counters_key(Shard(shard)), "settled", events)

    def sweep_was(self, seconds_ago: float) -> None:
        self.redis.set(PULSE, 1, px=int((PULSE_TTL_S - seconds_ago) * 1000))


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_swept_while_beat_sweeps(world: World) -> None:
    world.hold(2, 10)
    world.sweep_was(1.0)

    world.watchdog.tick()

    assert world.woken == []


def test_busy_shards_are_woken_when_beat_is_silent(world: World) -> None:
    world.hold(2, 10)
    world.hold(3, 10)
    world.sweep_was(3.5)

    world.watchdog.tick()

    assert sorted(world.woken) == [2, 3]


def test_busy_shards_are_woken_when_there_never_was_a_sweep(world: World) -> None:
    world.hold(1, 10)

    world.watchdog.tick()

    assert world.woken == [1]


def test_the_worker_sweeps_in_place_of_beat_every_second_until_beat_is_back(world: World) -> None:
    world.hold(2, 10)
    world.watchdog.tick()
    world.now += 1
    world.sweep_was(1.0)  # our own
    world.watchdog.tick()
    assert world.woken == [2, 2]

    world.now += 1
    world.sweep_was(0.1)  # not ours
    world.watchdog.tick()

    assert world.woken == [2, 2]


def test_the_worker_sends_every_message_of_a_silent_beat(world: World) -> None:
    world.sweep_was(1.0)
    world.watchdog.tick()
    assert world.sent == []

    for _ in range(181):
        world.sweep_was(1.0 if world.sent else 3.5)
        world.watchdog.tick()
        world.now += 1

    counts = {name: world.sent.count(name) for name in PERIODS_S}
    assert counts == {"webhook.sweep": 181, "low_credit.check": 4, "debit.partition": 1}


def test_a_shard_is_drained_directly_if_no_message_can_be_sent(world: World) -> None:
    world.hold(1, 10)
    world.hold(3, 10)
    world.broker_is_away = True

    world.watchdog.tick()

    assert (world.woken, sorted(world.drained_here)) == ([], [1, 3])


def let_pass(world: World, seconds: float) -> None:
    world.now += seconds
    world.sweep_was(0.5)
    world.watchdog.tick()


def test_a_backlog_without_progress_ends_the_worker(world: World) -> None:
    world.hold(0, 10)
    let_pass(world, 0)
    let_pass(world, STALLED_AFTER_S - 1)
    assert world.gave_up == []

    let_pass(world, 1)

    assert len(world.gave_up) == 1


def test_progress_of_any_shard_keeps_the_worker(world: World) -> None:
    world.hold(0, 10)
    world.hold(1, 10)
    let_pass(world, 0)
    let_pass(world, STALLED_AFTER_S - 1)
    world.settle(1, 5)
    let_pass(world, 1)

    let_pass(world, STALLED_AFTER_S - 1)

    assert world.gave_up == []


def test_an_empty_buffer_keeps_the_worker(world: World) -> None:
    let_pass(world, 0)

    let_pass(world, 10 * STALLED_AFTER_S)

    assert world.gave_up == []


def test_a_wrong_account_keeps_the_worker_while_the_streams_are_empty(world: World) -> None:
    """Redis may come back with half of an append; a stream may have been deleted by hand."""
    world.redis.hset(counters_key(Shard(0)), mapping={"epoch": "e", "accepted": 5, "settled": 2})
    world.redis.hset(BACKLOG, mapping={"events": 3, "bytes": 2})
    let_pass(world, 0)

    let_pass(world, 10 * STALLED_AFTER_S)

    assert world.gave_up == []


def test_usage_that_waits_for_an_upgrade_of_the_worker_is_no_stall(world: World) -> None:
    world.hold(0, 10, version=CHUNK_VERSION + 1)
    let_pass(world, 0)

    let_pass(world, 10 * STALLED_AFTER_S)

    assert world.gave_up == []


def test_a_stall_beside_a_shard_that_waits_for_an_upgrade_ends_the_worker(world: World) -> None:
    world.hold(0, 10, version=CHUNK_VERSION + 1)
    world.hold(1, 10)
    let_pass(world, 0)

    let_pass(world, STALLED_AFTER_S)

    assert len(world.gave_up) == 1


def test_a_stall_while_postgres_is_away_is_not_the_workers_fault(world: World) -> None:
    world.hold(0, 10)
    let_pass(world, 0)
    world.postgres_answers = False
    let_pass(world, 10 * STALLED_AFTER_S)

    world.postgres_answers = True
    let_pass(world, 1)

    assert world.gave_up == []


class _Stop(Event):
    """Stops `run` after a number of turns."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        self.turns -= 1
        return self.turns < 0


class _AwayThenBack:
    def __init__(self) -> None:
        self.outcomes = [
            RedisConnectionError(),
            RedisConnectionError(),
            None,
            RedisConnectionError(),
        ]

    def tick(self) -> None:
        if (outcome := self.outcomes.pop(0)) is not None:
            raise outcome


def test_each_absence_of_redis_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, **_more: warnings.append(text))

    run(_AwayThenBack(), _Stop(4))

    assert warnings == ["the watchdog cannot look", "the watchdog cannot look"]


def test_a_touched_file_shows_that_this_process_lives(tmp_path: Path) -> None:
    path = tmp_path / "run" / "alive"
    assert not is_alive(path)

    touch(path)

    assert is_alive(path)
    assert is_alive(path, os.getpid())
    assert not is_alive(path, os.getpid() + 1)


def test_an_old_file_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    touch(path)
    os.utime(path, (0, 0))

    assert not is_alive(path)
