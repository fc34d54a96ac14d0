"""Which properties meters sum: what lets the edge refuse what the drain could only dead-letter.

A courtesy, never the authority: when Redis does not answer, the last known holds, or nothing.
"""

from collections.abc import Mapping
from time import monotonic
from typing import Final, NamedTuple, cast

import orjson
from redis import Redis
from redis.exceptions import RedisError

from metering.buffer.keys import QUANTITIES
from metering.ids import BusinessId

SummedProperties = Mapping[str, frozenset[str]]  # event name -> properties that some meter sums

QUANTITIES_TTL_S: Final = 5.0
BUSINESSES_MAX: Final = 10_000

_NOTHING: Final[SummedProperties] = {}


class _Known(NamedTuple):
    summed: SummedProperties
    stale_at_s: float


class Quantities:
    """The summed properties of each business, kept in this process for `ttl_s` seconds.

    Give it a client with a short timeout of its own (0.3 s): a request waits for it, before it
    waits for the append. Thread-safe: the worst of a race is one more read.
    """

    def __init__(self, redis: "Redis", *, ttl_s: float = QUANTITIES_TTL_S) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._known: dict[BusinessId, _Known] = {}

    def summed(self, business_id: BusinessId) -> SummedProperties:
        """Return event name -> summed properties. Never raises."""
        known = self._known.get(business_id)
        if known and monotonic() < known.stale_at_s:
            return known.summed
        last = known.summed if known else _NOTHING
        # Marked fresh before the read: while one thread asks, the others go on with the last.
        self._keep(business_id, last)
        try:
            text = cast("bytes | None", self._redis.hget(QUANTITIES, business_id))
            return self._keep(business_id, _parsed(text))
        except (RedisError, ValueError, TypeError, AttributeError):
            return last

    def _keep(self, business_id: BusinessId, summed: SummedProperties) -> SummedProperties:
        if len(self._known) >= BUSINESSES_MAX:
            self._known.clear()
        self._known[business_id] = _Known(summed, monotonic() + self._ttl_s)
        return summed


def _parsed(text: bytes | None) -> SummedProperties:
    if text is None:
        return _NOTHING
    return {name: frozenset(keys) for name, keys in orjson.loads(text).items()}


def publish_quantities(
    redis: "Redis", summed: Mapping[BusinessId, Mapping[str, list[str]]]
) -> None:
    """Make `summed` (business -> event name -> properties) all that the edges know.

    One transaction; an edge has it within `QUANTITIES_TTL_S`.
    """
    pipe = redis.pipeline(transaction=True)
    pipe.delete(QUANTITIES)
    for business, names in summed.items():
        pipe.hset(QUANTITIES, business, orjson.dumps(names))
    pipe.execute()
