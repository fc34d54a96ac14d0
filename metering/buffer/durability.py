"""What `strict` promises, and whether this Redis can keep it: an answer means a write on the disk.

Only `appendfsync always` keeps it. WAITAOF would where the file is synced once a second, but
servers are in use that answer it before they have synced. Where Redis does not tell its
configuration, as managed ones do not, the operator may vouch for it.
"""

import logging
from threading import Lock
from time import monotonic
from typing import Final, Literal, cast

from redis import Redis
from redis.exceptions import ResponseError

from metering.errors import DurabilityError

# everysec          a crash of Redis' host may lose what it took in the last second or two
# strict            an answer means that the write is on the disk; Redis is asked whether it can
# strict_unchecked  the same, and the operator vouches for `appendfsync always`
Durability = Literal["everysec", "strict", "strict_unchecked"]

# The configuration can be changed, or another server take over.
BELIEVED_FOR_S: Final = 60.0
REFUSED_FOR_S: Final = 5.0
_OF_FILE: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    # Else nothing is synced while the file is rewritten.
    "no-appendfsync-on-rewrite": "no",
}

log = logging.getLogger("metering.buffer")


class Strict:
    """Says whether Redis can promise a write, or why not. Thread-safe."""

    def __init__(self, redis: "Redis", durability: Durability) -> None:
        self._redis = redis
        self._is_vouched_for = durability == "strict_unchecked"
        self._lock = Lock()
        self._refusal = ""
        self._until_s: float | None = None

    def check(self) -> None:
        """Check that a write is on the disk when it is answered; Redis is asked once in a while.

        Raises:
            DurabilityError: it is not.
            RedisError: Redis is away.

        """
        with self._lock:
            if self._until_s is None or monotonic() >= self._until_s:
                self._look()
            if self._refusal:
                raise DurabilityError(self._refusal)

    def _look(self) -> None:
        before, self._refusal = self._refusal, self._found()
        self._until_s = monotonic() + (REFUSED_FOR_S if self._refusal else BELIEVED_FOR_S)
        if self._refusal and self._refusal != before:
            log.error("no usage is taken: %s", self._refusal)

    def _found(self) -> str:
        """Return what is wrong; empty: nothing."""
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
                "strict durability needs appendfsync always, and this Redis does not tell its"
                " CONFIG: set GULLAK_DURABILITY=strict_unchecked if you know that it does"
            )
        wrong = [f"{name} {value}" for name, value in _OF_FILE.items() if config.get(name) != value]
        return f"strict durability needs {', '.join(wrong)} in Redis" if wrong else ""
