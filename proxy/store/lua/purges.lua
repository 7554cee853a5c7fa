-- The log of purges KEYS[1], whole if its last number is not ARGV[1]. Returns { last, name, number, ... }.
local last = redis.call('HGET', KEYS[1], '') or '0'
if last == ARGV[1] then
  return { last }
end
local log = redis.call('HGETALL', KEYS[1])
table.insert(log, 1, last)
return log
