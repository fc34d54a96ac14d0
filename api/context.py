"""Connections, caches and limits that all requests of a process share."""

from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Annotated, Final

from anyio import CapacityLimiter
from fastapi import Depends, Request
from redis import Redis

from api.auth import LOOK_UPS, KeyCache
from api.rate_limit import RateLimit
from api.readiness import Readiness
from metering.accept import AcceptLimits, Quantities
from metering.buffer.stream import UsageBuffer, connect
from metering.payment.charges.store import Gateways
from worker.context import open_buffer
from worker.faults import Faults
from worker.session import Sessions, make_engine
from worker.settings import Settings

# A request reads its rate limit and its quantities before it appends: all must end within 2 s.
QUICK_TIMEOUT_S: Final = 0.2
# A batch holds its locks for at most as long. A request that waits longer gets 503, and its thread
# serves others.
LOCK_TIMEOUT_MAX_MS: Final = 3000
# For how long the readiness reports a fault that a request met.
OWN_FAULT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The dependencies of requests, for one process."""

    settings: Settings
    sessions: Sessions
    buffer: UsageBuffer
    redis: Redis  # with a short timeout: for reads that a request can do without
    quantities: Quantities
    keys: KeyCache
    rate: RateLimit
    limits: AcceptLimits
    gateways: Gateways
    # Limits the requests that wait for a payment provider to half of the threads, so that a
    # provider that hangs does not block the others.
    charging: BoundedSemaphore
    # Threads that take events, apart from those that may all wait for a lock in Postgres.
    ingesting: CapacityLimiter
    # The faults of the servers that this process's requests met.
    faults: Faults
    readiness: Readiness

    @property
    def currencies(self) -> tuple[str, ...]:
        """The configured currencies."""
        return tuple(self.settings.currencies)

    def close(self) -> None:
        """Close all connections."""
        self.sessions.engine.dispose()
        self.readiness.close()
        self.buffer.redis.close()
        self.redis.close()


def open_context(config: Settings, gateways: Gateways) -> ApiContext:
    """Return the context of a process with these settings."""
    lock_timeout_ms = min(config.lock_timeout_ms, LOCK_TIMEOUT_MAX_MS)
    impatient = config.model_copy(update={"lock_timeout_ms": lock_timeout_ms})
    sessions = Sessions(make_engine(impatient, kept=config.api_threads, extra=LOOK_UPS))
    redis = connect(config.redis_url.get_secret_value(), timeout_s=QUICK_TIMEOUT_S)
    buffer = open_buffer(config)
    faults = Faults(shown_for_s=OWN_FAULT_S)
    return ApiContext(
        settings=config,
        sessions=sessions,
        buffer=buffer,
        redis=redis,
        quantities=Quantities(redis),
        keys=KeyCache(
            sessions.tenant, fresh_s=config.api_key_ttl_s, stale_s=config.api_key_stale_s
        ),
        rate=RateLimit(redis, config.api_rate_limit),
        limits=AcceptLimits(config.event_age_max_s, config.event_ahead_max_s),
        gateways=gateways,
        charging=BoundedSemaphore(max(1, config.api_threads // 2)),
        ingesting=CapacityLimiter(config.api_threads),
        faults=faults,
        readiness=Readiness(config, buffer, faults),
    )


async def _context(request: Request) -> ApiContext:
    context: ApiContext = request.app.state.context
    return context


Context = Annotated[ApiContext, Depends(_context)]
