-- Declare what is stored under some names dead. KEYS[1]: log of purges, a hash from name to the number of its
-- last purge, and the last number of all as ''.
-- ARGV: channel, the last number that the caller knows, for how long a purge is remembered in us, name, ...
-- Returns its number: greater than every one before, even those of a log that was lost.
-- A script that has written is not refused for lack of memory: to purge may be the way out.
redis.call('PERSIST', KEYS[1])
local time = redis.call('TIME')
local last = redis.call('HGET', KEYS[1], '') or '0'
local number = math.max(time[1] * 1000000 + time[2], last + 1, ARGV[2] + 1)
local text = string.format('%.0f', number)
redis.call('HSET', KEYS[1], '', text)
for i = 4, #ARGV do
  redis.call('HSET', KEYS[1], ARGV[i], text)
end
-- To look through a long log takes milliseconds: not each time, then.
if redis.call('HLEN', KEYS[1]) > 1000 and number % 100 == 0 then
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    if all[i + 1] < string.format('%.0f', number - ARGV[3]) then
      redis.call('HDEL', KEYS[1], all[i])
    end
  end
end
redis.call('PUBLISH', ARGV[1], '1 purge ' .. last .. ' ' .. text .. ' ' .. table.concat(ARGV, ' ', 4))
return text
