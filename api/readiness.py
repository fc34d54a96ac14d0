"""Whether this process can serve, and if not, for which cause: one look a second, whoever asks.

Anybody may ask, so asking opens no connection: a look goes over one session of its own, and those
who ask while it is under way share what it finds. A server that hangs costs each look two seconds.
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

# What a tenant's transaction sees of the schema, whether the policies bind it, and whether it may
# write.
_STATE: Final = (
    "SELECT (SELECT version_num FROM alembic_version) AS revision,"
    " row_security_active('customers') AND row_security_active('ledger_entries') AS is_walled,"
    " current_setting('transaction_read_only')::boolean AS is_read_only"
)
# An undefined table or column, a missing right, a role that is not there: Postgres itself answers.
_OF_SCHEMA: Final = frozenset({"22", "42"})


class Look(NamedTuple):
    """What is missing, and the cause for which each part of the whole fails; both may be empty."""

    missing: tuple[str, ...]
    causes: Mapping[str, str]


class Readiness:
    """What the process lacks. For one event loop.

    faults  those that the process's own requests met
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
        """Return what is missing now, or was within the last second."""
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
            both.start_soon(ask, "redis", self._of_redis)
        missing = [name for look in found.values() for name in look.missing]
        causes = {part: cause for look in found.values() for part, cause in look.causes.items()}
        return Look(tuple(dict.fromkeys(missing)), causes)

    def _postgres(self) -> Look:
        try:
            with self._sessions.tenant(NOBODY) as conn:
                state = conn.exec_driver_sql(_STATE).one()
        except DATABASE_ERRORS as error:
            is_of_schema = (sqlstate_of(error) or "08")[:2] in _OF_SCHEMA
            return Look(("schema" if is_of_schema else "postgres",), {API: cause_name(error)})
        if state.is_read_only:
            return Look(("postgres",), {API: "read_only"})
        lacks = {"schema": state.revision != newest_revision(), "wall": not state.is_walled}
        return Look(tuple(name for name, is_lacking in lacks.items() if is_lacking), {})

    def _of_redis(self) -> Look:
        """Ask Redis, and what it keeps of the faults that workers met."""
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
