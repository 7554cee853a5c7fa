-- The upstream confirmed the answer KEYS[1]: its bodies stay, its age starts anew.
-- ARGV: how long to keep it in ms, microseconds since it was confirmed, format, hash, meta.
-- Returns 0 if what is stored is not the answer that was confirmed; then nothing is changed.
local stored = redis.call('HMGET', KEYS[1], 'format', 'hash')
if stored[1] ~= ARGV[3] or stored[2] ~= ARGV[4] then
  return 0
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'meta', ARGV[5], 'arrived', string.format('%.0f', time[1] * 1000000 + time[2] - ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
