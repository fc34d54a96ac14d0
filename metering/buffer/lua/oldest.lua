-- How long the oldest chunk has waited, by the clock of Redis, which is also that of stream ids.
--
-- KEYS[1...]  the streams of all shards
-- RETURNS     milliseconds, or -1 if nothing is buffered (integer)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local waited = -1
for k = 1, #KEYS do
  local first = redis.call('XRANGE', KEYS[k], '-', '+', 'COUNT', 1)[1]
  if first then
    waited = math.max(waited, now - tonumber(string.match(first[1], '^%d+')), 0)
  end
end
return waited
