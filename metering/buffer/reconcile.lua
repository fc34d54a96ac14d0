-- Nothing is buffered: then the backlog is nothing, whatever was deleted behind our back.
--
-- KEYS[1]     gullak:usage:backlog
-- KEYS[2...]  the streams of all shards
-- RETURNS     1 if the backlog was set to nothing, 0 if a stream holds something (integer)

for k = 2, #KEYS do
  if redis.call('XLEN', KEYS[k]) > 0 then
    return 0
  end
end
redis.call('HSET', KEYS[1], 'events', 0, 'bytes', 0)
return 1
