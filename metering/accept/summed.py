"""The properties that meters sum, so that the edge refuses bad quantities before the drain does.

The drain decides. While Redis does not answer, the edge uses the last answer, or checks nothing.
"""

from collections.abc import Mapping
from time import monotonic
from typing import Final, NamedTuple, cast

import orjson
from redis import Redis
from redis.exceptions import RedisError

from metering.buffer.keys import QUANTITIES
from metering.ids import BusinessId

SummedProperties = Mapping[str, frozenset[str]]  # event name -> properties that a meter sums

QUANTITIES_TTL_S: Final = 5.0
BUSINESSES_MAX: Final = 10_000

_NOTHING: Final[SummedProperties] = {}


class _Cached(NamedTuple):
    summed: SummedProperties
    stale_at_s: float


class Quantities:
    """The summed properties of each business, kept in this process for `ttl_s` seconds.

    Give it its own client with a short timeout (0.3 s), because a request waits for this read
    before it waits for the append. Thread-safe: a race costs one more read at worst.
    """

    def __init__(self, redis: "Redis", *, ttl_s: float = QUANTITIES_TTL_S) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._cache: dict[BusinessId, _Cached] = {}

    def summed(self, business_id: BusinessId) -> SummedProperties:
        """Return event name -> summed properties. Never raises."""
        cached = self._cache.get(business_id)
        if cached and monotonic() < cached.stale_at_s:
            return cached.summed
        last = cached.summed if cached else _NOTHING
        # Cached again before the read, so that other threads use the last answer meanwhile.
        self._keep(business_id, last)
        try:
            text = cast("bytes | None", self._redis.hget(QUANTITIES, business_id))
            return self._keep(business_id, _parsed(text))
        except (RedisError, ValueError, TypeError, AttributeError):
            return last

    def _keep(self, business_id: BusinessId, summed: SummedProperties) -> SummedProperties:
        if len(self._cache) >= BUSINESSES_MAX:
            self._cache.clear()
        self._cache[business_id] = _Cached(summed, monotonic() + self._ttl_s)
        return summed


def _parsed(text: bytes | None) -> SummedProperties:
    if text is None:
        return _NOTHING
    return {name: frozenset(keys) for name, keys in orjson.loads(text).items()}


def publish_quantities(
    redis: "Redis", summed: Mapping[BusinessId, Mapping[str, list[str]]]
) -> None:
    """Replace the published properties by `summed` (business -> event name -> properties).

    One Redis transaction; every edge sees it within `QUANTITIES_TTL_S`.
    """
    pipe = redis.pipeline(transaction=True)
    pipe.delete(QUANTITIES)
    for business, names in summed.items():
        pipe.hset(QUANTITIES, business, orjson.dumps(names))
    pipe.execute()
