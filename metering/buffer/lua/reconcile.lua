-- Correct the counters of shards whose stream is empty, and set the backlog to the sum.
--
-- Redis may come back from a crash with half of an append, and a stream may be deleted by hand.
-- A shard that holds something keeps its counters; they are corrected once it is empty.
--
-- KEYS[1]               gullak:usage:backlog
-- KEYS[2k], KEYS[2k+1]  stream and counters of the k-th shard
-- RETURNS               for each shard, how many events its counters were off (integers)

local off = {}
local events, bytes = 0, 0
for k = 1, (#KEYS - 1) / 2 do
  local stream, counters = KEYS[2 * k], KEYS[2 * k + 1]
  local figures = redis.call('HMGET', counters, 'accepted', 'settled', 'accepted_bytes', 'settled_bytes')
  for i = 1, 4 do
    figures[i] = tonumber(figures[i]) or 0
  end
  local held, held_bytes = figures[1] - figures[2], figures[3] - figures[4]
  off[k] = 0
  if (held ~= 0 or held_bytes ~= 0) and redis.call('XLEN', stream) == 0 then
    off[k] = held
    -- HDEL first, because it frees memory: a full Redis refuses a script whose first write may not.
    redis.call('HDEL', counters, 'settled', 'settled_bytes')
    redis.call('HSET', counters, 'settled', figures[1], 'settled_bytes', figures[3])
    held, held_bytes = 0, 0
  end
  events, bytes = events + held, bytes + held_bytes
end
redis.call('HDEL', KEYS[1], 'events', 'bytes')
redis.call('HSET', KEYS[1], 'events', events, 'bytes', bytes)
return off
