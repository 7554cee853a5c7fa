-- The flight KEYS[1] ends without an answer that could be stored.
-- ARGV: token of the leader, channel and news for the followers, what ('failed', 'alone', 'released'), for how
-- long that holds in ms, for how long at most in ms, memory of a flight in ms, the error.
-- 'failed': nobody asks for a while, twice as long after each failure in a row; 'alone': its answers are not for
-- sharing; 'released': nothing was learned. Returns for how many ms it holds, 0 if another has led since.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local hold = tonumber(ARGV[5])
redis.call('HDEL', KEYS[1], 'leased_until_at', 'as_of')
if ARGV[4] == 'failed' then
  local failures = redis.call('HINCRBY', KEYS[1], 'failures', 1)
  hold = math.min(tonumber(ARGV[6]), hold * 2 ^ math.min(failures - 1, 30))
  redis.call('HSET', KEYS[1], 'failing_until_at', string.format('%.0f', now + hold * 1000), 'error', ARGV[8])
elseif ARGV[4] == 'alone' then
  redis.call('HDEL', KEYS[1], 'failures', 'failing_until_at', 'error')
  redis.call('HSET', KEYS[1], 'alone_until_at', string.format('%.0f', now + hold * 1000))
end
-- Long after a failure has ended, the next one is the first of a new row.
redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[7]), hold + ARGV[6]))
redis.call('PUBLISH', ARGV[2], ARGV[3])
return hold
