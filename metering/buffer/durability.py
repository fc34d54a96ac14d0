"""Strict durability: an answer means that the write is on the disk of this Redis.

Only `appendfsync always` keeps this promise. WAITAOF would keep it with a sync once a second, but
some servers in use answer WAITAOF before they have synced. A managed Redis may hide its
configuration; the operator may then vouch for it.
"""

import logging
from threading import Lock
from time import monotonic
from typing import Final, Literal, cast

from redis import Redis
from redis.exceptions import ResponseError

from metering.errors import DurabilityError

# everysec          a crash of Redis' host may lose the writes of the last second or two
# strict            an answer means that the write is on the disk; the configuration is checked
# strict_unchecked  the same, and the operator vouches for `appendfsync always`
Durability = Literal["everysec", "strict", "strict_unchecked"]

# How long an answer is believed: the configuration may change, or another server take over.
BELIEVED_FOR_S: Final = 60.0
REFUSED_FOR_S: Final = 5.0
_CONFIG: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    # With `yes` nothing is synced while the file is rewritten.
    "no-appendfsync-on-rewrite": "no",
}

log = logging.getLogger("metering.buffer")


class Strict:
    """Checks whether Redis can promise that a write is on the disk. Thread-safe."""

    def __init__(self, redis: "Redis", durability: Durability) -> None:
        self._redis = redis
        self._is_vouched_for = durability == "strict_unchecked"
        self._lock = Lock()
        self._refusal = ""
        self._until_s: float | None = None

    def check(self) -> None:
        """Check that an answer means a write on the disk. Redis is asked once in a while.

        Raises: DurabilityError if it does not; RedisError if Redis is away.
        """
        with self._lock:
            if self._until_s is None or monotonic() >= self._until_s:
                self._look()
            if self._refusal:
                raise DurabilityError(self._refusal)

    def _look(self) -> None:
        before, self._refusal = self._refusal, self._fault()
        self._until_s = monotonic() + (REFUSED_FOR_S if self._refusal else BELIEVED_FOR_S)
        if self._refusal and self._refusal != before:
            log.error("no usage is taken: %s", self._refusal)

    def _fault(self) -> str:
        """Return why Redis cannot keep the promise, or an empty text."""
        if self._redis.info("persistence").get("aof_enabled") == 0:
            return "strict durability needs appendonly yes in Redis"
        if self._is_vouched_for:
            return ""
        try:
            config = cast("dict[str, str]", self._redis.config_get("*append*"))
        except ResponseError:  # renamed, or not allowed
            config = {}
        if not config:
            return (
                "strict durability needs appendfsync always, and this Redis hides its CONFIG:"
                " set GULLAK_DURABILITY=strict_unchecked if you know that it has it"
            )
        wrong = [f"{name} {value}" for name, value in _CONFIG.items() if config.get(name) != value]
        return f"strict durability needs {', '.join(wrong)} in Redis" if wrong else ""
