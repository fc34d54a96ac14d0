"""The route of a meter that reaches the Redis of the buffer: it appends chunks itself."""

from metering.accept.client.flusher import Link, Route, whole
from metering.accept.summed import Quantities
from metering.buffer.durability import Durability
from metering.buffer.stream import UsageBuffer, connect
from metering.errors import ConfigurationError


def redis_route(
    url: str,
    timeout_s: float,
    *,
    shards: int,
    high_water_events: int,
    high_water_bytes: int,
    durability: Durability,
) -> Route:
    """Return the route. Raises: ConfigurationError if the address cannot be read."""

    def open_link() -> Link:
        redis = connect(url, timeout_s=timeout_s)
        buffer = UsageBuffer(
            redis,
            shards=shards,
            high_water_events=high_water_events,
            high_water_bytes=high_water_bytes,
            durability=durability,
        )
        return Link(buffer.append, Quantities(redis).summed, redis.close)

    try:
        open_link().close()
    except ValueError as error:
        raise ConfigurationError(f"the Redis address cannot be read: {error}") from error
    # A lost connection is tried once more.
    return Route(open_link, whole, answer_s=2 * timeout_s)
