"""What a task works with: the settings, transactions, the buffer; opened once per process."""

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from redis import Redis
from redis.exceptions import RedisError

from metering.buffer.stream import UsageBuffer, connect
from metering.db import Transactions
from metering.errors import ConfigurationError, DurabilityError
from worker.session import sessions
from worker.settings import Settings, settings


@dataclass(frozen=True, slots=True)
class Context:
    """The dependencies of use cases, for one process."""

    settings: Settings
    transaction: Transactions
    snapshot: Transactions
    buffer: UsageBuffer


def context() -> Context:
    """Return this process's context: connections made before a fork must not be used after it."""
    return _context_of(os.getpid())


@cache
def _context_of(_pid: int) -> Context:
    config = settings()
    here = sessions()
    return Context(config, here.transaction, here.snapshot, open_buffer(config))


def check_buffer(config: Settings) -> None:
    """Check, before a process begins, that it fits to what is buffered.

    Nobody knows while Redis is away; then the process begins, and is refused later.

    Raises:
        ConfigurationError: nobody said where the servers are.
        ShardMismatchError: events lie in shards that this process does not know.

    """
    for name in ("database_url", "redis_url"):
        if not getattr(config, name).get_secret_value():
            raise ConfigurationError(f"{name.upper()} is not set")
    buffer = open_buffer(config)
    with suppress(RedisError):
        buffer.check_shards()
    with suppress(RedisError, DurabilityError):
        buffer.check_durability()  # it logs the cause; Redis can be put right while this runs
    buffer.redis.close()


def open_buffer(config: Settings) -> UsageBuffer:
    """Return the usage buffer that the settings describe."""
    return UsageBuffer(
        connect_buffer(config),
        shards=config.shards,
        high_water_events=config.high_water_events,
        high_water_bytes=config.high_water_bytes,
        durability=config.durability,
    )


def connect_buffer(config: Settings) -> Redis:
    """Return a client of the buffer's Redis."""
    return connect(config.redis_url.get_secret_value(), timeout_s=config.redis_timeout_s)
