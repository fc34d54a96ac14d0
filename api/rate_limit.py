"""The rate limit of a key: counted in Redis over all API processes, taken from there in blocks.

A process takes a twentieth of the limit at a time, so nearly every request passes without a round
trip to Redis. So each process may waste, or carry into the next window, up to one block. If Redis
is down or slow, requests are let through for a few seconds.
"""

from dataclasses import dataclass
from math import ceil
from threading import Lock
from time import monotonic
from typing import Final

from limits import RateLimitItem, parse
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis import Redis
from redis.exceptions import RedisError

from metering.buffer.keys import RATE_LIMITS
from metering.errors import TooManyRequestsError
from metering.ids import KeyId
from worker.settings import NO_LIMIT

KEYS_MAX: Final = 10_000
BLOCKS_PER_WINDOW: Final = 20
# One lock per key would need cleaning up. There are fewer threads than these locks.
LOCK_STRIPES: Final = 64
# Circuit breaker: skip Redis for this long after a failure.
BREAKER_OPEN_S: Final = 5.0


@dataclass(slots=True)
class _Permits:
    """Unspent permits of a key, or a cached refusal; valid until `until_s`."""

    left: int
    until_s: float
    is_refusal: bool = False


class RateLimit:
    """The limit of every key, for one process. Thread-safe.

    redis  with a short timeout: about one request in twenty waits for it
    """

    def __init__(self, redis: "Redis", limit: str) -> None:
        self._item: RateLimitItem | None = None if limit == NO_LIMIT else parse(limit)
        self._limiter = FixedWindowRateLimiter(
            RedisStorage(
                "redis://",
                connection_pool=redis.connection_pool,
                key_prefix=RATE_LIMITS,
            )
        )
        self._lock = Lock()
        self._fetching = tuple(Lock() for _ in range(LOCK_STRIPES))
        self._permits: dict[KeyId, _Permits] = {}
        self._open_until_s = 0.0

    def passes(self, key_id: KeyId) -> bool:
        """Spend a permit that this process holds; never waits. Returns False if it holds none.

        Raises: TooManyRequestsError if the limit was reached a moment ago.
        """
        if self._item is None or monotonic() < self._open_until_s:
            return True
        with self._lock:
            permits = self._permits.get(key_id)
            if permits is None or monotonic() >= permits.until_s:
                return False
            if permits.is_refusal:
                raise TooManyRequestsError(self._window_s)
            permits.left -= 1
            return permits.left >= 0

    def take(self, key_id: KeyId) -> None:
        """Fetch a block of permits from Redis and spend one.

        Requests of one key wait for the first of them and share its block: twenty blocks at once
        would use up the whole limit. Raises: TooManyRequestsError if no permits are left.
        """
        with self._fetching[hash(key_id) % LOCK_STRIPES]:
            if not self.passes(key_id):
                self._fetch(key_id)

    def _fetch(self, key_id: KeyId) -> None:
        if self._item is None:
            return
        bulk = max(1, self._item.amount // BLOCKS_PER_WINDOW)
        try:
            is_granted = self._limiter.hit(self._item, key_id, cost=bulk)
        except RedisError:
            self._open_until_s = monotonic() + BREAKER_OPEN_S
            return
        window_s = self._item.get_expiry()
        if is_granted:
            self._keep(key_id, _Permits(bulk - 1, monotonic() + window_s))
            return
        self._keep(key_id, _Permits(0, monotonic() + window_s / BLOCKS_PER_WINDOW, is_refusal=True))
        raise TooManyRequestsError(self._window_s)

    @property
    def _window_s(self) -> int:
        return 1 if self._item is None else ceil(self._item.get_expiry())

    def _keep(self, key_id: KeyId, permits: _Permits) -> None:
        with self._lock:
            if len(self._permits) >= KEYS_MAX:
                self._permits.clear()
            self._permits[key_id] = permits
