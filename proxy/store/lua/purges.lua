-- The log of purges KEYS[1], whole if its last number is not ARGV[1]. Returns { last, now in us, name, number, ... }.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
local last = redis.call('HGET', KEYS[1], '') or '0'
if last == ARGV[1] then
  return { last, now }
end
local log = redis.call('HGETALL', KEYS[1])
table.insert(log, 1, now)
table.insert(log, 1, last)
return log
