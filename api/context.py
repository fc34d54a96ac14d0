"""What a request works with: the tenant's transactions, the buffer, the settings of the process."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Annotated, Final, TypeVar

from anyio import CapacityLimiter
from fastapi import Depends, Request
from redis import Redis
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from api.auth import LOOK_UPS, KeyRing
from api.rate_limit import RateLimit
from api.readiness import Readiness
from metering.accept import AcceptLimits, Quantities
from metering.buffer.stream import UsageBuffer, connect
from metering.db import has_given_way
from metering.ids import BusinessId
from metering.payment.charges.store import Gateways
from worker.context import open_buffer
from worker.faults import Faults
from worker.session import Sessions, make_engine
from worker.settings import Settings

ATTEMPTS_MAX: Final = 3
BACK_OFF_S: Final = 0.02
# A request waits for its rate limit and for what is summed before it waits for the append, and all
# must end within 2 s.
QUICK_TIMEOUT_S: Final = 0.2
# A request waits no longer for a lock than a batch holds one: its client is told to come back, and
# its thread serves others.
LOCK_TIMEOUT_MAX_MS: Final = 3000

# How long the readiness tells of a fault that a request met.
OWN_FAULT_S: Final = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ApiScope:
    """The dependencies of requests, for one process."""

    settings: Settings
    sessions: Sessions
    buffer: UsageBuffer
    redis: Redis  # with a short timeout: for what a request can do without
    quantities: Quantities
    keys: KeyRing
    rate: RateLimit
    limits: AcceptLimits
    gateways: Gateways
    # Requests that may wait for a payment provider at the same time: half of all, so that one
    # which hangs takes nothing else along.
    charging: BoundedSemaphore
    # Threads that take events: apart from those that may all wait for a lock in Postgres.
    ingesting: CapacityLimiter
    # Faults of the servers that this process's requests met.
    faults: Faults
    readiness: Readiness

    @property
    def currencies(self) -> tuple[str, ...]:
        """The configured currencies."""
        return tuple(self.settings.currencies)

    def run(self, business_id: BusinessId, work: Callable[[Connection], T]) -> T:
        """Do `work` in one transaction of the business; again if Postgres chose it to give way.

        Raises:
            Exception: what `work` raises; nothing was written.

        """
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                with self.sessions.tenant(business_id) as conn:
                    return work(conn)
            except DBAPIError as error:
                if attempt == ATTEMPTS_MAX or not has_given_way(error):
                    raise
                time.sleep(random.uniform(0, attempt * BACK_OFF_S))  # noqa: S311 - spreads, hides nothing
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close all connections."""
        self.sessions.engine.dispose()
        self.readiness.close()
        self.buffer.redis.close()
        self.redis.close()


def open_scope(config: Settings, gateways: Gateways) -> ApiScope:
    """Return the scope of a process with these settings, that charges through these gateways."""
    patience_ms = min(config.lock_timeout_ms, LOCK_TIMEOUT_MAX_MS)
    hasty = config.model_copy(update={"lock_timeout_ms": patience_ms})
    sessions = Sessions(make_engine(hasty, kept=config.api_threads, extra=LOOK_UPS))
    redis = connect(config.redis_url.get_secret_value(), timeout_s=QUICK_TIMEOUT_S)
    buffer = open_buffer(config)
    faults = Faults(shown_for_s=OWN_FAULT_S)
    return ApiScope(
        settings=config,
        sessions=sessions,
        buffer=buffer,
        redis=redis,
        quantities=Quantities(redis),
        keys=KeyRing(sessions.tenant, fresh_s=config.api_key_ttl_s, stale_s=config.api_key_stale_s),
        rate=RateLimit(redis, config.api_rate_limit),
        limits=AcceptLimits(config.event_age_max_s, config.event_ahead_max_s),
        gateways=gateways,
        charging=BoundedSemaphore(max(1, config.api_threads // 2)),
        ingesting=CapacityLimiter(config.api_threads),
        faults=faults,
        readiness=Readiness(config, buffer, faults),
    )


async def _scope_of(request: Request) -> ApiScope:
    # Async though nothing is awaited: a plain function would be run in a thread of its own.
    found = request.app.state.scope
    if not isinstance(found, ApiScope):
        raise TypeError("the application was not started")
    return found


Scoped = Annotated[ApiScope, Depends(_scope_of)]


async def _note_repeatable(request: Request) -> None:
    request.state.repeatable = True


# For a POST that changes nothing when it comes once more, though it has no key of its own.
REPEATABLE: Final = (Depends(_note_repeatable),)
