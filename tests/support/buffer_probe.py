"""A small buffer for tests: chunks for a chosen shard, and the whole keyspace as plain data."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from metering.buffer.chunk import (
    CHUNK_VERSION,
    BufferedEvent,
    chunk_lines,
    encode_chunk,
    parse_line,
)
from metering.buffer.durability import Durability
from metering.buffer.keys import Shard
from metering.buffer.shard import shard_of
from metering.buffer.stream import UsageBuffer, connect
from metering.ids import BusinessId

BUSINESS = BusinessId("bus_1")
SHARDS = 4
HIGH_WATER_BYTES = 1 << 20
# One customer for each of the first shards.
CUSTOMERS = {
    shard_of(BUSINESS, customer, SHARDS): customer for customer in (f"cus_{n}" for n in range(64))
}


def decode_chunk(payload: bytes) -> list[BufferedEvent]:
    """Return the events of a chunk."""
    count = payload.count(b"\n") + 1 if payload else 0
    return [parse_line(line) for line in chunk_lines(payload, count)]


def events_of(shard: int, *ids: str) -> list[BufferedEvent]:
    return [
        BufferedEvent(one, CUSTOMERS[Shard(shard)], "call", "2026-01-31T09:30:00.000000Z", {"n": 1})
        for one in ids
    ]


def open_buffer(
    url: str,
    *,
    shards: int = SHARDS,
    events: int = 1000,
    size_bytes: int = HIGH_WATER_BYTES,
    durability: Durability = "everysec",
) -> UsageBuffer:
    return UsageBuffer(
        connect(url, timeout_s=1.5),
        shards=shards,
        high_water_events=events,
        high_water_bytes=size_bytes,
        durability=durability,
    )


@contextmanager
def written_by_a_newer_release() -> Iterator[None]:
    """Chunks that are appended inside carry the next version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metering.buffer.stream.CHUNK_VERSION", CHUNK_VERSION + 1)
        yield


def keyspace(buffer: UsageBuffer) -> dict[str, object]:
    """Return all that Redis holds: streams as lists of event ids, hashes without the epoch."""
    redis: Any = buffer.redis  # its annotations allow for clients that decode
    found: dict[str, object] = {}
    for raw_key in redis.keys("*"):
        key = raw_key.decode()
        if redis.type(raw_key) == b"stream":
            found[key] = [ids_in(fields[b"e"]) for _, fields in redis.xrange(raw_key)]
        elif redis.type(raw_key) == b"hash":
            fields = redis.hgetall(raw_key)
            found[key] = {
                name.decode(): int(value) for name, value in fields.items() if name != b"epoch"
            }
        else:
            found[key] = redis.get(raw_key)
    return found


def ids_in(payload: bytes) -> list[str]:
    return [event.event_id for event in decode_chunk(payload)]


def size_of(*chunks: list[BufferedEvent]) -> int:
    return sum(len(encode_chunk(BUSINESS, chunk)) for chunk in chunks)
