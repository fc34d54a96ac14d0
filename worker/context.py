"""The settings, transactions and buffer that tasks and requests work with, once per process."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from redis import Redis
from redis.exceptions import RedisError

from metering.buffer.stream import UsageBuffer, connect
from metering.checkpoint import Checkpoint, no_checkpoint
from metering.db import Transactions
from metering.errors import ConfigurationError, DurabilityError
from metering.webhook.guard import Reach
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
    """Return the context of this process. Each has its own: a connection survives no fork."""
    return _context_of(os.getpid())


@cache
def _context_of(_pid: int) -> Context:
    config = settings()
    opened = sessions()
    return Context(config, opened.transaction, opened.snapshot, open_buffer(config))


def check_buffer(config: Settings) -> None:
    """Check, before a process begins, that it fits the buffer.

    While Redis is away nobody can tell. Then the process begins, and its writes are refused later.

    Raises: ConfigurationError if the address of a server is missing, ShardMismatchError if events
    lie in shards that this process does not know.
    """
    for name in ("database_url", "redis_url"):
        if not getattr(config, name).get_secret_value():
            raise ConfigurationError(f"{name.upper()} is not set")
    buffer = open_buffer(config)
    with suppress(RedisError):
        buffer.check_shards()
    with suppress(RedisError, DurabilityError):
        buffer.check_durability()  # logged; Redis can be corrected while this runs
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


def reach_of(config: Settings) -> Reach:
    """Return which receivers of webhooks the settings allow."""
    return Reach(loopback=config.webhook_allow_loopback, private=config.webhook_allow_private)


def checkpoint_of(config: Settings) -> Checkpoint:
    """Return a function that kills this process at a point for which there is a file.

    The file has the name of the point. The process that deletes it dies, so each file kills once.
    """
    folder = config.failpoint_dir
    if folder is None:
        return no_checkpoint

    def checkpoint(reached: str) -> None:
        with suppress(FileNotFoundError):
            (folder / reached).unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint
