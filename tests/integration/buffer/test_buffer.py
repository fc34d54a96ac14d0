"""The buffer on real servers; each step is checked against the whole keyspace."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from metering.buffer.chunk import BufferedEvent
from metering.buffer.keys import BACKLOG, PULSE, Shard, attempts_key, counters_key, stream_key
from metering.buffer.shard import shard_of
from metering.buffer.stream import Backlog, UsageBuffer
from metering.errors import (
    BufferFullError,
    ShardMismatchError,
)
from support.buffer_probe import (
    BUSINESS,
    SHARDS,
    decode_chunk,
    events_of,
    keyspace,
    open_buffer,
    size_of,
)
from support.own_redis import BINARIES, OwnRedis, running_redis


@pytest.fixture(scope="module", params=BINARIES)
def server(request: pytest.FixtureRequest, module_data_dir: Path) -> Iterator[OwnRedis]:
    with running_redis(module_data_dir / request.param, binary=BINARIES[request.param]()) as own:
        yield own


@pytest.fixture
def redis_url(server: OwnRedis) -> str:
    with Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


@pytest.fixture
def four(redis_url: str) -> Iterator[UsageBuffer]:
    """A buffer of four shards with a low high-water mark."""
    opened = open_buffer(redis_url)
    yield opened
    opened.redis.close()


def counters(accepted: list[list[BufferedEvent]], settled: list[list[BufferedEvent]]) -> object:
    counts = {
        "accepted": sum(map(len, accepted)),
        "accepted_bytes": size_of(*accepted),
    }
    if settled:
        counts |= {"settled": sum(map(len, settled)), "settled_bytes": size_of(*settled)}
    return counts


def test_an_append_writes_streams_counters_and_the_backlog_and_nothing_else(
    four: UsageBuffer,
) -> None:
    first, second = events_of(0, "a", "b"), events_of(3, "c")
    four.append(BUSINESS, [first[0], second[0], first[1]])

    assert keyspace(four) == {
        stream_key(Shard(0)): [["a", "b"]],
        counters_key(Shard(0)): counters([first], []),
        stream_key(Shard(3)): [["c"]],
        counters_key(Shard(3)): counters([second], []),
        BACKLOG: {"shards": SHARDS, "events": 3, "bytes": size_of(first, second)},
    }
    assert all(four.redis.ttl(key) == -1 for key in keyspace(four))


def test_an_empty_append_writes_nothing(four: UsageBuffer) -> None:
    four.append(BUSINESS, [])

    assert keyspace(four) == {}


def test_the_head_holds_the_oldest_chunks_unchanged(four: UsageBuffer) -> None:
    chunks = [events_of(1, f"{n}-1", f"{n}-2") for n in range(3)]
    for chunk in chunks:
        four.append(BUSINESS, chunk)
    head = four.read_head(Shard(1), 1000)

    assert [decode_chunk(held.payload) for held in head] == chunks
    assert [(held.business_id, held.event_count) for held in head] == [(BUSINESS, 2)] * 3
    assert [held.accepted_total for held in head] == [2, 4, 6]
    assert sorted(head, key=lambda held: held.position) == head


@pytest.mark.parametrize(("events_max", "chunks"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3)])
def test_a_read_stops_at_its_size_but_takes_at_least_one_chunk(
    four: UsageBuffer, events_max: int, chunks: int
) -> None:
    for n in range(3):
        four.append(BUSINESS, events_of(1, f"{n}-1", f"{n}-2"))

    for _ in range(3):
        assert len(four.read_head(Shard(1), events_max)) == chunks


def test_a_trim_deletes_exactly_the_chunks_that_were_read(four: UsageBuffer) -> None:
    first, second, later = events_of(2, "a"), events_of(2, "b", "c"), events_of(2, "d")
    four.append(BUSINESS, first)
    four.append(BUSINESS, second)
    head = four.read_head(Shard(2), 1000)
    four.append(BUSINESS, later)

    assert four.trim(Shard(2), head) == 2
    assert keyspace(four) == {
        stream_key(Shard(2)): [["d"]],
        counters_key(Shard(2)): counters([first, second, later], [first, second]),
        BACKLOG: {"shards": SHARDS, "events": 1, "bytes": size_of(later)},
    }


def test_a_repeated_trim_counts_once(four: UsageBuffer) -> None:
    chunk = events_of(2, "a", "b")
    four.append(BUSINESS, chunk)
    head = four.read_head(Shard(2), 1000)

    assert [four.trim(Shard(2), head) for _ in range(3)] == [1, 0, 0]
    assert keyspace(four) == {
        stream_key(Shard(2)): [],
        counters_key(Shard(2)): counters([chunk], [chunk]),
        BACKLOG: {"shards": SHARDS, "events": 0, "bytes": 0},
    }


def test_the_high_water_mark_is_exact_to_the_event(redis_url: str) -> None:
    buffer = open_buffer(redis_url, events=5)
    buffer.append(BUSINESS, events_of(0, "1", "2", "3"))
    before = keyspace(buffer)
    with pytest.raises(BufferFullError) as full:
        buffer.append(BUSINESS, events_of(0, "4", "5", "6"))

    assert full.value.retry_after_s >= 1
    assert keyspace(buffer) == before
    buffer.append(BUSINESS, events_of(0, "4", "5"))
    with pytest.raises(BufferFullError):
        buffer.append(BUSINESS, events_of(1, "6"))
    buffer.trim(Shard(0), buffer.read_head(Shard(0), 3))
    buffer.append(BUSINESS, events_of(1, "6", "7", "8"))
    assert buffer.backlog().events == 5
    buffer.redis.close()


def test_the_high_water_mark_is_exact_to_the_byte(redis_url: str) -> None:
    first, second = events_of(0, "1"), events_of(1, "2")
    exact = size_of(first, second)
    buffer = open_buffer(redis_url, size_bytes=exact)
    buffer.append(BUSINESS, first)
    with pytest.raises(BufferFullError):
        buffer.append(BUSINESS, events_of(1, "22"))

    assert buffer.backlog().bytes == size_of(first)
    buffer.append(BUSINESS, second)
    assert buffer.backlog().bytes == exact
    buffer.redis.close()


def test_a_request_for_several_shards_is_appended_whole_or_not_at_all(redis_url: str) -> None:
    buffer = open_buffer(redis_url, events=3)
    with pytest.raises(BufferFullError):
        buffer.append(BUSINESS, [event for s in range(4) for event in events_of(s, f"{s}")])

    assert keyspace(buffer) == {}
    buffer.redis.close()


def test_only_an_empty_buffer_accepts_another_number_of_shards(redis_url: str) -> None:
    """No worker would sweep the events in shards of another number."""
    four, eight = open_buffer(redis_url), open_buffer(redis_url, shards=8)
    four.append(BUSINESS, events_of(0, "a"))
    before = keyspace(four)
    with pytest.raises(ShardMismatchError):
        eight.append(BUSINESS, events_of(0, "b"))

    assert keyspace(four) == before
    four.trim(Shard(0), four.read_head(Shard(0), 10))
    eight.append(BUSINESS, events_of(0, "b"))
    with pytest.raises(ShardMismatchError):
        four.append(BUSINESS, events_of(0, "c"))
    for opened in (four, eight):
        opened.redis.close()


def test_a_customer_keeps_its_shard_and_customers_spread(four: UsageBuffer) -> None:
    """The hash decides where stored events are, so it must never change."""
    assert [shard_of("bus_1", f"cus_{n}", 16) for n in range(6)] == [11, 13, 7, 1, 2, 4]
    spread = [shard_of("bus_1", f"cus_{n}", 16) for n in range(16_000)]
    assert all(800 < spread.count(Shard(shard)) < 1200 for shard in range(16))
    for one in "abc":
        four.append(BUSINESS, events_of(1, one))

    assert [chunk.event_count for chunk in four.read_head(Shard(1), 10)] == [1, 1, 1]
    assert four.backlog().busy == (Shard(1),)


def test_reading_the_backlog_takes_one_round_trip_and_changes_nothing(four: UsageBuffer) -> None:
    four.append(BUSINESS, events_of(0, "a") + events_of(3, "b", "c"))
    before = keyspace(four)
    seen = four.backlog()

    assert (seen.events, seen.busy) == (3, (Shard(0), Shard(3)))
    assert keyspace(four) == before


def test_a_sweep_sees_the_backlog_and_leaves_a_pulse(four: UsageBuffer) -> None:
    four.append(BUSINESS, events_of(0, "a"))
    seen = four.sweep()

    assert seen.busy == (Shard(0),)
    assert 0 < four.redis.ttl(PULSE) <= 60


def test_attempts_at_a_head_are_counted_until_it_is_trimmed(four: UsageBuffer) -> None:
    four.append(BUSINESS, events_of(0, "a"))
    four.append(BUSINESS, events_of(0, "b"))
    first, second = four.read_head(Shard(0), 10)

    assert [four.begin(Shard(0), first.stream_id) for _ in range(3)] == [1, 2, 3]
    four.trim(Shard(0), [first])
    assert attempts_key(Shard(0)) not in keyspace(four)
    assert four.begin(Shard(0), second.stream_id) == 1
    four.forget_attempts(Shard(0))
    assert attempts_key(Shard(0)) not in keyspace(four)


def test_after_a_flush_the_stream_begins_a_new_epoch(four: UsageBuffer) -> None:
    four.append(BUSINESS, events_of(0, "a", "b"))
    head, before = four.read_head(Shard(0), 10), four.counters(Shard(0))
    four.redis.flushall()

    gone = four.counters(Shard(0))
    assert (gone.epoch, gone.buffered) == ("", 0)
    assert four.trim(Shard(0), head) == 0
    assert keyspace(four) == {}
    four.append(BUSINESS, events_of(0, "c"))
    after = four.counters(Shard(0))
    assert after.epoch not in ("", before.epoch)
    assert (after.accepted, after.settled, after.buffered) == (1, 0, 1)


def test_a_foreign_entry_in_a_stream_is_read_and_can_be_trimmed(four: UsageBuffer) -> None:
    four.redis.xadd(stream_key(Shard(0)), {b"junk": b"\xff", b"b": b"\xff", b"n": b"-1"})
    (chunk,) = four.read_head(Shard(0), 10)

    assert (chunk.event_count, chunk.payload) == (0, b"")
    assert four.trim(Shard(0), [chunk]) == 1
    assert four.read_head(Shard(0), 10) == []


def test_accepted_events_are_always_settled_plus_buffered_events(four: UsageBuffer) -> None:
    """A random walk of appends and trims, checked against a plain list per shard."""
    dice = random.Random(20260131)  # noqa: S311
    model: dict[int, list[list[BufferedEvent]]] = {shard: [] for shard in range(SHARDS)}
    for step in range(300):
        shard = dice.randrange(SHARDS)
        if dice.random() < 0.6:
            chunk = events_of(shard, *(f"{step}-{n}" for n in range(dice.randint(1, 5))))
            four.append(BUSINESS, chunk)
            model[shard].append(chunk)
        else:
            head = four.read_head(Shard(shard), dice.randint(1, 8))
            four.trim(Shard(shard), head)
            del model[shard][: len(head)]

    held = keyspace(four)
    for shard, chunks in model.items():
        ids = [[event.event_id for event in chunk] for chunk in chunks]
        assert held[stream_key(Shard(shard))] == ids
        assert four.counters(Shard(shard)).buffered == sum(map(len, chunks))
    everything = [chunk for chunks in model.values() for chunk in chunks]
    assert held[BACKLOG] == {
        "shards": SHARDS,
        "events": sum(map(len, everything)),
        "bytes": size_of(*everything),
    }


def test_wrong_counters_are_corrected_once_the_stream_is_empty(
    four: UsageBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    """One stream was deleted by hand. Of another append, Redis kept only the first half."""
    four.append(BUSINESS, events_of(0, "a", "b") + events_of(1, "c"))
    four.append(BUSINESS, events_of(2, "d"))
    four.redis.delete(stream_key(Shard(0)))
    for shard in (1, 3):
        four.redis.hsetnx(counters_key(Shard(shard)), "epoch", "torn")
        four.redis.hincrby(counters_key(Shard(shard)), "accepted", 5)
    four.trim(Shard(1), four.read_head(Shard(1), 10))

    four.sweep()

    assert four.backlog() == Backlog(1, size_of(events_of(2, "d")), (Shard(2),))
    assert [four.counters(shard).buffered for shard in four.shards] == [0, 0, 1, 0]
    assert [four.counters(shard).accepted for shard in four.shards] == [2, 6, 1, 5]
    logged = [record.args for record in caplog.records]
    assert logged == [(0, 2), (1, 5), (3, 5)]
    before = keyspace(four)
    four.sweep()
    assert (keyspace(four), len(caplog.records)) == (before, 3)


def test_wrong_counters_stay_while_the_shard_holds_events(four: UsageBuffer) -> None:
    four.append(BUSINESS, events_of(0, "a"))
    four.redis.hincrby(counters_key(Shard(0)), "accepted", 5)
    four.sweep()
    assert four.counters(Shard(0)).buffered == 6

    four.trim(Shard(0), four.read_head(Shard(0), 10))
    four.sweep()

    assert four.counters(Shard(0)).buffered == 0
    assert four.backlog() == Backlog(0, 0, ())
