"""Faults of the servers: a counter, one log line per cause and minute, and the board.

The board is a hash in Redis: which task or route fails now, and why. Workers write it, and the
readiness of the API shows it. While Redis takes no writes, each process knows only its own faults.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from time import monotonic, time
from typing import Final, cast

import psycopg
import structlog
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from metering.buffer.keys import FAULTS
from metering.buffer.stream import connect
from metering.db import cause_name, cause_of, is_server_fault, sqlstate_of
from worker.metrics import SERVER_FAULTS
from worker.settings import settings

# A part that fails tries again within this, a wait for a lock included.
SHOWN_FOR_S: Final = 15.0
LOGGED_EVERY_S: Final = 60.0
WRITTEN_EVERY_S: Final = 1.0
# Nobody is at fault: the same works when it is tried again.
_PASSING: Final = frozenset({"deadlock", "serialization_failure", "idle_in_transaction"})
_OF_REDIS: Final[Mapping[type[RedisError], str]] = {
    RedisConnectionError: "redis_unreachable",
    RedisTimeoutError: "redis_unreachable",
    OutOfMemoryError: "redis_full",
    ReadOnlyError: "redis_read_only",
}

log = structlog.get_logger("gullak.faults")


def is_fault(error: BaseException) -> bool:
    """Tell whether Postgres or Redis is at fault: the same may work later."""
    return is_server_fault(error) or isinstance(error, tuple(_OF_REDIS))


def name_of(error: BaseException) -> str:
    """Return the name of the cause, such as `disk_full`."""
    for kind, name in _OF_REDIS.items():
        if isinstance(error, kind):
            return name
    return cause_name(error)


@dataclass
class Faults:
    """The faults that this process has met. Thread-safe.

    redis  keeps the board, and needs a short timeout; None keeps it in this process
    """

    redis: "Redis | None" = None
    shown_for_s: float = SHOWN_FOR_S
    _lock: Lock = field(default_factory=Lock)
    _logged_at_s: dict[tuple[str, str], float] = field(default_factory=dict)
    _written_at_s: dict[str, float] = field(default_factory=dict)
    _here: dict[str, tuple[str, float]] = field(default_factory=dict)

    def note(self, part: str, error: BaseException) -> None:
        """Count a fault that `part` met, log it, and show it on the board for a while."""
        cause = name_of(error)
        sqlstate = sqlstate_of(error)
        kind = "redis" if isinstance(error, RedisError) else (sqlstate or "08")[:2]
        SERVER_FAULTS.labels(kind, part.partition(".")[0]).inc()
        now = monotonic()
        with self._lock:
            is_logged = _is_within(self._logged_at_s.get((part, cause)), now, LOGGED_EVERY_S)
            if not is_logged:
                self._logged_at_s[part, cause] = now
            is_written = _is_within(self._written_at_s.get(part), now, WRITTEN_EVERY_S)
            if cause not in _PASSING:
                self._here[part] = (cause, now + self.shown_for_s)
                self._written_at_s[part] = now
        if cause not in _PASSING and not is_written:
            self._write(part, cause)
        if not is_logged and self._is_first(cause):
            log.warning(
                "a server is at fault: what it was asked for waits",
                part=part,
                cause=cause,
                sqlstate=sqlstate,
                said=_text_of(error),
            )

    def _write(self, part: str, cause: str) -> None:
        if self.redis is None:
            return
        try:
            pipe = self.redis.pipeline(transaction=False)
            pipe.hset(FAULTS, part, f"{time() + self.shown_for_s:.0f} {cause}")
            pipe.expire(FAULTS, int(4 * SHOWN_FOR_S))
            pipe.execute()
        except RedisError:
            return

    def _is_first(self, cause: str) -> bool:
        """Tell whether no process has logged this cause within a minute, as far as Redis knows."""
        if self.redis is None:
            return True
        try:
            key = f"{FAULTS}:told:{cause}"
            return bool(self.redis.set(key, 1, nx=True, ex=int(LOGGED_EVERY_S) - 1))
        except RedisError:
            return True

    def clear(self, part: str) -> None:
        """Take a part that works again off the board. Cheap if it is not on it."""
        if part not in self._here:
            return
        with self._lock:
            self._here.pop(part, None)
            self._written_at_s.pop(part, None)
        if self.redis is not None:
            try:
                self.redis.hdel(FAULTS, part)
            except RedisError:
                return

    def here(self) -> dict[str, str]:
        """Return the parts of this process that fail, each with its cause."""
        now = monotonic()
        with self._lock:
            return {part: cause for part, (cause, until) in self._here.items() if until > now}


def read_board(redis: "Redis") -> dict[str, str]:
    """Return the parts that fail in any worker, each with its cause. Empty if Redis is away."""
    try:
        rows = cast("dict[bytes, bytes]", redis.hgetall(FAULTS))
    except RedisError:
        return {}
    now = time()
    board: dict[str, str] = {}
    for part, value in rows.items():
        until, _, cause = value.decode().partition(" ")
        if until.isdigit() and int(until) > now:
            board[part.decode()] = cause
    return board


def faults() -> Faults:
    """Return the faults of this process. Each has its own: a connection survives no fork."""
    return _faults_of(os.getpid())


@cache
def _faults_of(_pid: int) -> Faults:
    config = settings()
    return Faults(connect(config.redis_url.get_secret_value(), timeout_s=0.2))


def _is_within(at_s: float | None, now: float, span_s: float) -> bool:
    return at_s is not None and now - at_s < span_s


def _text_of(error: BaseException) -> str:
    """Return the text of the server, without the statement and its parameters."""
    cause = cause_of(error)
    if isinstance(cause, psycopg.Error) and cause.diag.message_primary:
        return cause.diag.message_primary
    return str(cause)[:300]
