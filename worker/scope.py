"""What a task works with: the settings, transactions, the buffer; opened once per process."""

import os
from dataclasses import dataclass
from functools import cache

from metering.buffer.stream import UsageBuffer, connect
from metering.db import Transactions
from worker.session import sessions
from worker.settings import Settings, settings


@dataclass(frozen=True, slots=True)
class Scope:
    """The dependencies of use cases, for one process."""

    settings: Settings
    transaction: Transactions
    snapshot: Transactions
    buffer: UsageBuffer


def scope() -> Scope:
    """Return this process's scope: connections made before a fork must not be used after it."""
    return _scope_of(os.getpid())


@cache
def _scope_of(_pid: int) -> Scope:
    config = settings()
    here = sessions()
    return Scope(config, here.transaction, here.snapshot, open_buffer(config))


def open_buffer(config: Settings) -> UsageBuffer:
    """Return the usage buffer that the settings describe."""
    return UsageBuffer(
        connect(config.redis_url.get_secret_value(), timeout_s=config.redis_timeout_s),
        shards=config.shards,
        high_water_events=config.high_water_events,
        high_water_bytes=config.high_water_bytes,
        durability=config.durability,
    )
