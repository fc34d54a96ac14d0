"""How many keys that are nobody's an address may try: each costs a look into Postgres.

A stranger who guesses finds nothing, but would keep those busy who look for the keys of others.
Only keys that this process does not know count, so who has a key is not in a stranger's way behind
the same address.
"""

from threading import Lock
from time import monotonic
from typing import Final

from metering.errors import TooManyFailedKeysError

# An address may fail so often at once, and then so often a second.
BURST: Final = 20.0
REFILL_PER_S: Final = 2.0
RETRY_AFTER_S: Final = 5
ADDRESSES_MAX: Final = 10_000


class FailedKeys:
    """The budgets of addresses, for one process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._left: dict[str, tuple[float, float]] = {}

    def check(self, address: str) -> None:
        """Let an address try a key.

        Raises:
            TooManyFailedKeysError: it has failed too often.

        """
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
