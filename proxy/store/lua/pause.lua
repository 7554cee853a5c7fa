-- The PDS of an account wants no request on its behalf for a while; the longest such wish holds.
-- KEYS[1]: prefix. ARGV: account, microseconds. Returns 1.
local time = redis.call('TIME')
local until_us = time[1] * 1000000 + time[2] + ARGV[2]
local stored = tonumber(redis.call('HGET', KEYS[1] .. 'pauses', ARGV[1]) or 0)
if until_us > stored then
  redis.call('HSET', KEYS[1] .. 'pauses', ARGV[1], string.format('%.0f', until_us))
end
return 1
