"""How long the oldest buffered usage has waited: the lag that a customer would notice."""

from importlib.resources import files

from metering.buffer.keys import stream_key
from metering.buffer.stream import UsageBuffer


def oldest_age_s(buffer: UsageBuffer) -> float | None:
    """Return the age of the oldest buffered chunk, or None if nothing is buffered."""
    text = (files("metering.buffer") / "oldest.lua").read_text()
    script = buffer.redis.register_script(text)
    waited_ms = int(script([stream_key(shard) for shard in buffer.shards]))
    return None if waited_ms < 0 else waited_ms / 1000
