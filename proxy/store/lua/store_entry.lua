-- Store an answer as KEYS[1], in place of what is there, and end its flight KEYS[2].
-- ARGV: token of the leader, channel and news for the followers, how long to keep it in ms, microseconds since
-- it arrived, field, value, ...
-- Returns 1, or 0 if another has led since: then nothing is changed.
if not may_write(KEYS[1], KEYS[2], ARGV[1]) then
  return 0
end
local time = redis.call('TIME')
local type = redis.call('TYPE', KEYS[1]).ok
if type ~= 'hash' and type ~= 'none' then
  redis.call('DEL', KEYS[1])
end
-- First what needs memory: a script that has written already is not refused for lack of it.
redis.call('HSET', KEYS[1], 'arrived_at', string.format('%.0f', time[1] * 1000000 + time[2] - ARGV[5]), unpack(ARGV, 6))
local wanted = { arrived_at = true }
for i = 6, #ARGV, 2 do
  wanted[ARGV[i]] = true
end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if not wanted[field] then
    redis.call('HDEL', KEYS[1], field)
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
landed(KEYS[2], ARGV[2], ARGV[3])
return 1
