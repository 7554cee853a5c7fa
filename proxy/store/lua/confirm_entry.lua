-- The upstream confirmed the answer KEYS[1]: its bodies stay, its age starts anew, its flight KEYS[2] ends.
-- ARGV: token of the leader, channel and news for the followers, how long to keep it in ms, microseconds since
-- it was confirmed, format, hash, field, value, ...
-- Returns 1; 0 if another has led since, -1 if what is stored is not the answer that was confirmed: then
-- nothing is changed.
if not may_write(KEYS[1], KEYS[2], ARGV[1]) then
  return 0
end
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  return -1
end
local stored = redis.call('HMGET', KEYS[1], 'format', 'hash')
if stored[1] ~= ARGV[6] or stored[2] ~= ARGV[7] then
  return -1
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'arrived_at', string.format('%.0f', time[1] * 1000000 + time[2] - ARGV[5]), unpack(ARGV, 8))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
landed(KEYS[2], ARGV[2], ARGV[3])
return 1
