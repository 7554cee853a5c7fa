-- Take a turn at a PDS: the token bucket of proxy/resilience/limiter.py, one for each host, and the pauses of
-- accounts. KEYS[1]: prefix. ARGV: host, account, turns a second, burst.
-- Returns microseconds after which to ask again, 0 if the turn was taken. A host not known starts empty.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local paused = tonumber(redis.call('HGET', KEYS[1] .. 'pauses', ARGV[2]) or 0)
if paused > now then
  return string.format('%.0f', paused - now)
end
if paused > 0 then
  redis.call('HDEL', KEYS[1] .. 'pauses', ARGV[2])
end
local per_us, burst = ARGV[3] / 1000000, tonumber(ARGV[4])
local tokens, at = 0, now
local stored = redis.call('HGET', KEYS[1] .. 'pace', ARGV[1])
if stored then
  local had, since = string.match(stored, '^(%S+) (%S+)$')
  tokens = math.min(burst, had + math.max(0, now - since) * per_us)
  at = math.max(now, since)
end
local wait = 0
if tokens < 1 then
  wait = math.max(1, math.ceil((1 - tokens) / per_us))
else
  tokens = tokens - 1
end
redis.call('HSET', KEYS[1] .. 'pace', ARGV[1], string.format('%.17g %.0f', tokens, at))
return string.format('%.0f', wait)
