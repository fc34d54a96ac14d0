-- Count an attempt at a head; another head begins at one.
--
-- KEYS[1] attempts
-- ARGV[1] stream id of the head (text)
-- RETURNS the number of this attempt, from 1 (integer)

local count = 1
if redis.call('HGET', KEYS[1], 'head') == ARGV[1] then
  count = 1 + (tonumber(redis.call('HGET', KEYS[1], 'count')) or 0)
end
-- A full Redis refuses a script whose first write may take memory. DEL frees some.
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'head', ARGV[1], 'count', count)
return count
