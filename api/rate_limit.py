"""How many requests a key may make: counted in Redis over all API processes, spent here in bulk.

A process takes a twentieth of the limit at a time, so that nearly every request passes without
asking anybody. For that, so much of a window may stay unused, or be spent a window later, by each
process. Redis away or slow is no reason to refuse: then there is no limit for a few seconds.
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
SHARES: Final = 20
# Keys that fetch permits at the same time; there are fewer threads that could.
TAKERS: Final = 64
# After Redis did not answer it is left alone for so long.
OPEN_S: Final = 5.0


@dataclass(slots=True)
class _Purse:
    """Permits of one key, to be spent until then; or a refusal, which holds until then."""

    left: int
    until_s: float
    is_refusal: bool = False


class RateLimit:
    """The limit of every key, for one process. Thread-safe.

    redis  with a short timeout: a request in twenty or so waits for it
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
        self._taking = tuple(Lock() for _ in range(TAKERS))
        self._purses: dict[KeyId, _Purse] = {}
        self._open_until_s = 0.0

    def passes(self, key_id: KeyId) -> bool:
        """Spend a permit that this process holds; never waits. False: `take` one.

        Raises:
            TooManyRequestsError: the limit was reached a moment ago.

        """
        if self._item is None or monotonic() < self._open_until_s:
            return True
        with self._lock:
            purse = self._purses.get(key_id)
            if purse is None or monotonic() >= purse.until_s:
                return False
            if purse.is_refusal:
                raise TooManyRequestsError(self._window_s)
            purse.left -= 1
            return purse.left >= 0

    def take(self, key_id: KeyId) -> None:
        """Fetch permits from Redis and spend one.

        Requests that come at once wait for the first of them and share what it fetched: twenty of
        them fetching each for itself would use up the whole limit.

        Raises:
            TooManyRequestsError: there are none left in this window.

        """
        with self._taking[hash(key_id) % TAKERS]:
            if not self.passes(key_id):
                self._fetch(key_id)

    def _fetch(self, key_id: KeyId) -> None:
        if self._item is None:
            return
        bulk = max(1, self._item.amount // SHARES)
        try:
            is_granted = self._limiter.hit(self._item, key_id, cost=bulk)
        except RedisError:
            self._open_until_s = monotonic() + OPEN_S
            return
        window_s = self._item.get_expiry()
        if is_granted:
            self._keep(key_id, _Purse(bulk - 1, monotonic() + window_s))
            return
        self._keep(key_id, _Purse(0, monotonic() + window_s / SHARES, is_refusal=True))
        raise TooManyRequestsError(self._window_s)

    @property
    def _window_s(self) -> int:
        return 1 if self._item is None else ceil(self._item.get_expiry())

    def _keep(self, key_id: KeyId, purse: _Purse) -> None:
        with self._lock:
            if len(self._purses) >= KEYS_MAX:
                self._purses.clear()
            self._purses[key_id] = purse
