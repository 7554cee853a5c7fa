-- Store an answer as KEYS[1], in place of what is there.
-- ARGV: how long to keep it in ms, microseconds since it arrived, field, value, ...
local time = redis.call('TIME')
local type = redis.call('TYPE', KEYS[1]).ok
if type ~= 'hash' and type ~= 'none' then
  redis.call('DEL', KEYS[1])
end
-- First what needs memory: a script that has written already is not refused for lack of it.
redis.call('HSET', KEYS[1], 'arrived', string.format('%.0f', time[1] * 1000000 + time[2] - ARGV[2]), unpack(ARGV, 3))
local wanted = { arrived = true }
for i = 3, #ARGV, 2 do
  wanted[ARGV[i]] = true
end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if not wanted[field] then
    redis.call('HDEL', KEYS[1], field)
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
