-- Append all chunks of one request, or none if that would pass the high-water mark.
--
-- KEYS[1]               gullak:usage:backlog
-- KEYS[2k], KEYS[2k+1]  stream and counters of the k-th chunk's shard
-- ARGV[1], ARGV[2]      high-water mark: events, bytes                          (integers)
-- ARGV[3]               name for the stream's epoch, if it has none             (text)
-- ARGV[4]               business id                                             (text)
-- ARGV[5]               number of shards over which the caller spreads events   (integer)
-- ARGV[6]               version of the chunks                                   (integer)
-- ARGV[2k+5], ARGV[2k+6]  number of events and bytes of the k-th chunk          (integer, bytes)
-- RETURNS               1 appended, 0 above the mark, -n the buffer has n shards  (integer)

local chunks = (#KEYS - 1) / 2
local events, bytes = 0, 0
for k = 1, chunks do
  events = events + tonumber(ARGV[2 * k + 5])
  bytes = bytes + #ARGV[2 * k + 6]
end
local held = redis.call('HMGET', KEYS[1], 'events', 'bytes', 'shards')
-- Nobody sweeps the shards of another number, so only an empty buffer takes a new number.
if held[3] and held[3] ~= ARGV[5] and (tonumber(held[1]) or 0) > 0 then
  return 0 - tonumber(held[3])
end
if (tonumber(held[1]) or 0) + events > tonumber(ARGV[1])
  or (tonumber(held[2]) or 0) + bytes > tonumber(ARGV[2]) then
  return 0
end
for k = 1, chunks do
  local stream, counters = KEYS[2 * k], KEYS[2 * k + 1]
  local count, payload = ARGV[2 * k + 5], ARGV[2 * k + 6]
  redis.call('HSETNX', counters, 'epoch', ARGV[3])
  local total = redis.call('HINCRBY', counters, 'accepted', count)
  redis.call('XADD', stream, '*', 'b', ARGV[4], 'n', count, 't', total, 'v', ARGV[6], 'e', payload)
  redis.call('HINCRBY', counters, 'accepted_bytes', #payload)
end
redis.call('HSET', KEYS[1], 'shards', ARGV[5])
redis.call('HINCRBY', KEYS[1], 'events', events)
redis.call('HINCRBY', KEYS[1], 'bytes', bytes)
return 1
