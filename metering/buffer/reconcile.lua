-- Put the counters right of shards whose stream is empty, and make the backlog their sum.
--
-- Redis may come back from a crash with half of an append, and a stream may be deleted by hand.
-- Counters of a shard that holds something are left: they are put right once it is empty.
--
-- KEYS[1]               gullak:usage:backlog
-- KEYS[2k], KEYS[2k+1]  stream and account of the k-th shard
-- RETURNS               per shard by how many events its counters were off (integers)

local off = {}
local events, bytes = 0, 0
for k = 1, (#KEYS - 1) / 2 do
  local stream, account = KEYS[2 * k], KEYS[2 * k + 1]
  local said = redis.call('HMGET', account, 'accepted', 'settled', 'accepted_bytes', 'settled_bytes')
  for i = 1, 4 do
    said[i] = tonumber(said[i]) or 0
  end
  local held, held_bytes = said[1] - said[2], said[3] - said[4]
  off[k] = 0
  if (held ~= 0 or held_bytes ~= 0) and redis.call('XLEN', stream) == 0 then
    off[k] = held
    -- First what frees memory: a full Redis refuses a script that begins with anything else.
    redis.call('HDEL', account, 'settled', 'settled_bytes')
    redis.call('HSET', account, 'settled', said[1], 'settled_bytes', said[3])
    held, held_bytes = 0, 0
  end
  events, bytes = events + held, bytes + held_bytes
end
redis.call('HDEL', KEYS[1], 'events', 'bytes')
redis.call('HSET', KEYS[1], 'events', events, 'bytes', bytes)
return off
