"""The buffer while its Redis is full, killed, frozen or not durable enough."""

import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from metering.buffer.keys import Shard, stream_key
from metering.buffer.stream import Backlog, UsageBuffer
from metering.errors import (
    BufferFullError,
    BufferUnavailableError,
)
from support.buffer_probe import BUSINESS, events_of, ids_in, keyspace, open_buffer
from support.own_redis import BINARIES, OwnRedis, redis_6, running_redis


@pytest.fixture
def own_redis(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[OwnRedis]:
    binary = BINARIES[getattr(request, "param", "valkey 9")]()
    with running_redis(data_dir, binary=binary) as server:
        yield server


on_both = pytest.mark.parametrize("own_redis", BINARIES, indirect=True)


@pytest.fixture
def own(own_redis: OwnRedis) -> Iterator[UsageBuffer]:
    opened = open_buffer(own_redis.url)
    yield opened
    opened.redis.close()


@on_both
def test_a_full_redis_refuses_new_usage_keeps_the_old_and_recovers(
    own: UsageBuffer, own_redis: OwnRedis
) -> None:
    """Under noeviction a full Redis accepts and loses nothing, and the drain still works."""
    own.append(BUSINESS, events_of(0, "a") + events_of(1, "b"))
    before = keyspace(own)
    own_redis.configure(maxmemory="1")
    with pytest.raises(BufferFullError):
        own.append(BUSINESS, events_of(0, "c") + events_of(2, "d"))

    assert keyspace(own) == before
    assert own.sweep().busy == (Shard(0), Shard(1))
    head = own.read_head(Shard(0), 10)
    assert [own.begin(Shard(0), head[0].stream_id) for _ in range(2)] == [1, 2]
    assert own.trim(Shard(0), head) == 1
    own.redis.delete(stream_key(Shard(1)))
    assert own.sweep().busy == ()
    assert own.backlog() == Backlog(0, 0, ())
    own_redis.configure(maxmemory="0")
    own.append(BUSINESS, events_of(1, "b"))
    own.append(BUSINESS, events_of(0, "c"))
    assert own.backlog().events == 2


@on_both
def test_usage_leaves_part_of_the_memory_of_redis_free(
    own: UsageBuffer, own_redis: OwnRedis
) -> None:
    """The same Redis may hold the wake-ups of the drain, so usage must not fill it."""
    maxmemory = own.redis.info("memory")["used_memory"] + (8 << 20)
    own_redis.configure(maxmemory=str(maxmemory))
    buffer = open_buffer(own_redis.url, events=10**9, size_bytes=1 << 40)
    payload = [event._replace(metadata={"text": "x" * 900}) for event in events_of(0, *"abcdefgh")]
    for _ in range(2000):
        with suppress(BufferFullError):
            buffer.append(BUSINESS, payload)
    with pytest.raises(BufferFullError):
        buffer.append(BUSINESS, payload)

    assert buffer.backlog().bytes > 2 << 20
    left = maxmemory - own.redis.info("memory")["used_memory"]
    assert left > maxmemory / 16
    own.redis.set("message", "x" * (left // 4))
    buffer.redis.close()


def test_a_killed_redis_comes_back_with_all_usage_and_the_pool_recovers(
    own: UsageBuffer, own_redis: OwnRedis
) -> None:
    own.append(BUSINESS, events_of(0, "a"))
    time.sleep(1.2)  # everysec
    before = keyspace(own)
    own_redis.kill()
    with pytest.raises(BufferUnavailableError):
        own.append(BUSINESS, events_of(0, "b"))
    own_redis.start()

    assert keyspace(own) == before
    own.append(BUSINESS, events_of(0, "b"))
    assert [ids_in(chunk.payload) for chunk in own.read_head(Shard(0), 10)] == [["a"], ["b"]]


def test_valkey_reads_the_data_directory_of_redis_6(data_dir: Path) -> None:
    """A data directory of `gullak up` from before Valkey: rewritten in part, killed, then read."""
    with running_redis(data_dir, binary=redis_6()) as old:
        buffer = open_buffer(old.url)
        buffer.append(BUSINESS, events_of(0, "a", "b"))
        buffer.append(BUSINESS, events_of(0, "c"))
        buffer.trim(Shard(0), buffer.read_head(Shard(0), 1))
        buffer.redis.bgrewriteaof()
        while buffer.redis.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.02)
        buffer.append(BUSINESS, events_of(0, "d") + events_of(3, "e"))
        before = keyspace(buffer)
        time.sleep(1.2)  # everysec
        buffer.redis.close()
    with running_redis(data_dir) as new:
        buffer = open_buffer(new.url)
        assert buffer.redis.info("server")["server_name"] == "valkey"
        assert keyspace(buffer) == before

        buffer.append(BUSINESS, events_of(0, "f"))
        head = buffer.read_head(Shard(0), 10)
        assert [ids_in(chunk.payload) for chunk in head] == [["c"], ["d"], ["f"]]
        assert buffer.trim(Shard(0), head) == 3
        assert buffer.backlog() == Backlog(1, buffer.backlog().bytes, (Shard(3),))
        buffer.redis.close()


def test_a_restart_of_redis_between_two_calls_raises_no_error(
    own: UsageBuffer, own_redis: OwnRedis
) -> None:
    """The pool holds a socket that the restart closed: one retry, no error."""
    own.append(BUSINESS, events_of(0, "a"))
    own_redis.kill()
    own_redis.start()
    own.append(BUSINESS, events_of(0, "b"))

    assert own.read_head(Shard(0), 10)


def test_an_append_to_a_frozen_redis_waits_a_bounded_time_and_can_be_repeated(
    own: UsageBuffer, own_redis: OwnRedis
) -> None:
    own.append(BUSINESS, events_of(0, "a"))
    own_redis.send(signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(BufferUnavailableError):
            own.append(BUSINESS, events_of(0, "b"))
    finally:
        own_redis.send(signal.SIGCONT)

    assert time.monotonic() - started < 2
    own.append(BUSINESS, events_of(0, "b"))
    held = [ids_in(chunk.payload) for chunk in own.read_head(Shard(0), 10)]
    assert held in ([["a"], ["b"]], [["a"], ["b"], ["b"]])
