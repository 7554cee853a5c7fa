-- Store an answer as KEYS[1], in place of what is there.
-- ARGV: how long to keep it in ms, microseconds since it arrived, field, value, ...
local time = redis.call('TIME')
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'arrived', string.format('%.0f', time[1] * 1000000 + time[2] - ARGV[2]), unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
