"""A limit of failed API keys per address: each unknown key costs a query in Postgres.

Guessing finds no key, but it would delay the lookup of valid ones. Keys in the cache of this
process are not checked here, so a valid key works behind an address that is over its limit.
"""

from threading import Lock
from time import monotonic
from typing import Final

from metering.errors import TooManyFailedKeysError

# A token bucket per address: failures at once, and failures per second after that.
BURST: Final = 20.0
REFILL_PER_S: Final = 2.0
RETRY_AFTER_S: Final = 5
ADDRESSES_MAX: Final = 10_000


class FailedKeys:
    """The token buckets of addresses, for one process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._left: dict[str, tuple[float, float]] = {}

    def check(self, address: str) -> None:
        """Raise TooManyFailedKeysError if an address has failed too often."""
        with self._lock:
            if self._left_of(address, monotonic()) < 1:
                raise TooManyFailedKeysError(RETRY_AFTER_S)

    def count(self, address: str) -> None:
        """Count a failure."""
        now = monotonic()
        with self._lock:
            left = max(0.0, self._left_of(address, now) - 1)
            if len(self._left) >= ADDRESSES_MAX and address not in self._left:
                self._left.clear()
            self._left[address] = (left, now)

    def _left_of(self, address: str, now: float) -> float:
        left, at_s = self._left.get(address, (BURST, now))
        return min(BURST, left + (now - at_s) * REFILL_PER_S)
