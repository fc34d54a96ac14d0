"""Readiness: whether this process can serve, and the cause if not. Checked once a second at most.

The route needs no key, so a request must not open a connection: all checks use one session, and
requests that come during a check share its result. A server that hangs delays a check by 2 seconds.
"""

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final, NamedTuple

from anyio import CapacityLimiter, Lock, create_task_group, move_on_after, to_thread
from redis.exceptions import RedisError

from api.auth import NOBODY
from metering.buffer.stream import UsageBuffer
from metering.db import DATABASE_ERRORS, cause_name, sqlstate_of
from metering.errors import DurabilityError, ShardMismatchError
from worker.faults import Faults, name_of, read_board
from worker.migrate import newest_revision
from worker.session import Sessions, make_engine
from worker.settings import Settings

FRESH_S: Final = 1.0
WAIT_S: Final = 2.0
_WAIT_MS: Final = 1500
API: Final = "api"

# As a tenant: the revision of the schema, whether row-level security applies, and whether the
# server is read-only.
_STATE: Final = (
    "SELECT (SELECT version_num FROM alembic_version) AS revision,"
    " row_security_active('customers') AND row_security_active('ledger_entries') AS is_walled,"
    " current_setting('transaction_read_only')::boolean AS is_read_only"
)
# SQLSTATE classes of an undefined table or column, a missing right or role: Postgres answers, so
# the schema is at fault.
_SCHEMA_CLASSES: Final = frozenset({"22", "42"})


class Look(NamedTuple):
    """The parts that are missing, and the cause of failure of each part that fails."""

    missing: tuple[str, ...]
    causes: Mapping[str, str]


class Readiness:
    """Checks what this process needs. For one event loop.

    faults  the server faults that requests of this process ran into
    """

    def __init__(self, config: Settings, buffer: UsageBuffer, faults: Faults) -> None:
        hasty = {"statement_timeout_ms": _WAIT_MS, "lock_timeout_ms": _WAIT_MS}
        self._sessions = Sessions(make_engine(config.model_copy(update=hasty), kept=1, extra=0))
        self._buffer = buffer
        self._faults = faults
        self._lock = Lock()
        self._threads = CapacityLimiter(2)
        self._seen = Look((), {})
        self._seen_at_s: float | None = None

    async def look(self) -> Look:
        """Return a result that is at most `FRESH_S` old."""
        async with self._lock:
            if self._seen_at_s is None or monotonic() - self._seen_at_s >= FRESH_S:
                self._seen = await self._look()
                self._seen_at_s = monotonic()
            return self._seen

    async def _look(self) -> Look:
        found: dict[str, Look] = {
            "postgres": Look(("postgres",), {API: "unreachable"}),
            "redis": Look(("redis",), {API: "redis_unreachable"}),
        }

        async def ask(name: str, work: Callable[[], Look]) -> None:
            with move_on_after(WAIT_S):
                found[name] = await to_thread.run_sync(
                    work, limiter=self._threads, abandon_on_cancel=True
                )

        async with create_task_group() as both:
            both.start_soon(ask, "postgres", self._postgres)
            both.start_soon(ask, "redis", self._redis)
        missing = [name for look in found.values() for name in look.missing]
        causes = {part: cause for look in found.values() for part, cause in look.causes.items()}
        return Look(tuple(dict.fromkeys(missing)), causes)

    def _postgres(self) -> Look:
        try:
            with self._sessions.tenant(NOBODY) as conn:
                state = conn.exec_driver_sql(_STATE).one()
        except DATABASE_ERRORS as error:
            is_of_schema = (sqlstate_of(error) or "08")[:2] in _SCHEMA_CLASSES
            return Look(("schema" if is_of_schema else "postgres",), {API: cause_name(error)})
        if state.is_read_only:
            return Look(("postgres",), {API: "read_only"})
        lacks = {"schema": state.revision != newest_revision(), "wall": not state.is_walled}
        return Look(tuple(name for name, is_lacking in lacks.items() if is_lacking), {})

    def _redis(self) -> Look:
        """Check Redis, and read the faults that workers have stored there."""
        try:
            self._buffer.redis.ping()
            self._buffer.check_shards()
            self._buffer.check_durability()
        except RedisError as error:
            return Look(("redis",), {API: name_of(error)})
        except ShardMismatchError as error:
            return Look(("shards",), {API: error.message})
        except DurabilityError as error:
            return Look(("durability",), {API: error.message})
        causes = read_board(self._buffer.redis) | self._faults.here()
        servers = {
            "redis" if cause.startswith("redis") else "postgres" for cause in causes.values()
        }
        return Look(tuple(sorted(servers)), causes)

    def close(self) -> None:
        """Close the session."""
        self._sessions.engine.dispose()
