"""What a request works with: the tenant's transactions, the buffer, the settings of the process."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Annotated, Final, TypeVar

from fastapi import Depends, Request
from redis import Redis
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from api.auth import NOBODY, KeyRing
from api.rate_limit import RateLimit
from metering.accept import AcceptLimits, Quantities
from metering.buffer.stream import UsageBuffer, connect
from metering.db import has_given_way
from metering.errors import ShardMismatchError
from metering.ids import BusinessId
from metering.purchase.charge.stored import Gateways
from worker.migrate import newest_revision
from worker.scope import open_buffer
from worker.session import Sessions, make_engine
from worker.settings import Settings

ATTEMPTS_MAX: Final = 3
BACK_OFF_S: Final = 0.02
# A request waits for its rate limit and for what is summed before it waits for the append, and all
# must end within 2 s.
QUICK_TIMEOUT_S: Final = 0.2

# What a tenant's transaction sees of the schema, and whether the policies bind it.
_STATE: Final = (
    "SELECT (SELECT version_num FROM alembic_version) AS revision,"
    " row_security_active('customers') AND row_security_active('ledger_entries') AS is_walled"
)

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

    def unprepared(self) -> list[str]:
        """Return what the database lacks: the `schema` of this version, the `wall` of tenants."""
        try:
            with self.sessions.tenant(NOBODY) as conn:
                state = conn.exec_driver_sql(_STATE).one()
        except DBAPIError:
            return ["schema"]  # not even the role of the edge is there, or it cannot be asked
        lacks = {"schema": state.revision != newest_revision(), "wall": not state.is_walled}
        return [name for name, is_lacking in lacks.items() if is_lacking]

    def refused_by_buffer(self) -> list[str]:
        """Return why no usage can be taken though Redis answers: its `shards` are not ours."""
        try:
            self.buffer.check_shards()
        except ShardMismatchError:
            return ["shards"]
        return []

    def close(self) -> None:
        """Close all connections."""
        self.sessions.engine.dispose()
        self.buffer.redis.close()
        self.redis.close()


def open_scope(config: Settings, gateways: Gateways) -> ApiScope:
    """Return the scope of a process with these settings, that charges through these gateways."""
    sessions = Sessions(make_engine(config, kept=config.api_threads, extra=0))
    redis = connect(config.redis_url.get_secret_value(), timeout_s=QUICK_TIMEOUT_S)
    return ApiScope(
        settings=config,
        sessions=sessions,
        buffer=open_buffer(config),
        redis=redis,
        quantities=Quantities(redis),
        keys=KeyRing(sessions.tenant, fresh_s=config.api_key_ttl_s, stale_s=config.api_key_stale_s),
        rate=RateLimit(redis, config.api_rate_limit),
        limits=AcceptLimits(config.event_age_max_s, config.event_ahead_max_s),
        gateways=gateways,
        charging=BoundedSemaphore(max(1, config.api_threads // 2)),
    )


async def _scope_of(request: Request) -> ApiScope:
    # Async though nothing is awaited: a plain function would be run in a thread of its own.
    found = request.app.state.scope
    if not isinstance(found, ApiScope):
        raise TypeError("the application was not started")
    return found


Scoped = Annotated[ApiScope, Depends(_scope_of)]
