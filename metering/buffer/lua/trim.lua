-- Delete exactly these chunks. A second trim of a chunk changes nothing.
--
-- KEYS[1] stream, KEYS[2] counters, KEYS[3] gullak:usage:backlog, KEYS[4] attempts
-- ARGV    triples: stream id (text), number of events (integer), bytes (integer)
-- RETURNS number of chunks deleted (integer)

local chunks, events, bytes = 0, 0, 0
for i = 1, #ARGV, 3 do
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then
    chunks = chunks + 1
    events = events + tonumber(ARGV[i + 1])
    bytes = bytes + tonumber(ARGV[i + 2])
  end
end
if chunks > 0 then
  redis.call('HINCRBY', KEYS[2], 'settled', events)
  redis.call('HINCRBY', KEYS[2], 'settled_bytes', bytes)
  -- Not `-events`: for a foreign entry that is -0, which Redis does not read as a number.
  redis.call('HINCRBY', KEYS[3], 'events', 0 - events)
  redis.call('HINCRBY', KEYS[3], 'bytes', 0 - bytes)
end
redis.call('DEL', KEYS[4])
return chunks
