"""The high-water mark in bytes: part of the memory of Redis is kept free for all but usage.

A Redis at its `maxmemory` refuses every write that may take memory. Producers must learn that the
buffer is full before that; otherwise Redis would also refuse the wake-ups of the drain, which may
live in the same Redis.
"""

from threading import Lock
from time import monotonic
from typing import Final, cast

from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from metering.buffer.keys import BACKLOG

LOOK_EVERY_S: Final = 1.0
# Of `maxmemory`. Wake-ups take far less, but answers on their way to a reader count as well, and a
# drain reads ten megabytes at once.
RESERVE: Final = 0.125
# Memory in Redis per buffered byte, with names and nodes: measured 1.1 for large chunks, 1.3 for
# chunks of ten events. Each look corrects the rest.
BYTES_PER_BYTE: Final = 1.3
_REDIS_REFUSAL: Final = "command not allowed when used memory"


def is_full(error: BaseException) -> bool:
    """Tell whether Redis refused a write because its memory is used up."""
    # Older servers report it from a script only in the text of a plain error.
    return isinstance(error, OutOfMemoryError) or _REDIS_REFUSAL in str(error)


class Room:
    """The setting, or less if Redis itself has less room.

    Each process that appends asks Redis once a second. All of them compute the mark from the same
    figures, and the script enforces it to the byte.
    """

    def __init__(self, redis: "Redis", high_water_bytes: int) -> None:
        self._redis = redis
        self._high_water_bytes = high_water_bytes
        self._mark = high_water_bytes
        self._look_at_s = 0.0
        self._lock = Lock()

    def mark_bytes(self) -> int:
        """Return how many bytes of usage may be buffered now; none if it is below zero.

        Raises: RedisError if Redis is away.
        """
        with self._lock:
            is_due = monotonic() >= self._look_at_s
            if is_due:
                self._look_at_s = monotonic() + LOOK_EVERY_S
        if is_due:
            self._mark = min(self._high_water_bytes, self._mark_of_memory())
        return self._mark

    def _mark_of_memory(self) -> int:
        pipe = self._redis.pipeline(transaction=False)
        pipe.info("memory")
        pipe.hget(BACKLOG, "bytes")
        memory, held = pipe.execute(raise_on_error=False)
        if isinstance(memory, ResponseError):
            return self._high_water_bytes  # this user may not ask; only the setting counts
        for answer in (memory, held):
            if isinstance(answer, Exception):
                raise answer
        figures = cast("dict[str, int]", memory)
        if not figures["maxmemory"]:
            return self._high_water_bytes
        room = int(figures["maxmemory"] * (1 - RESERVE)) - figures["used_memory"]
        return int(held or 0) + int(room / BYTES_PER_BYTE)
