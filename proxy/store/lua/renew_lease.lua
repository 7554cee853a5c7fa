-- The leader of the flight KEYS[1] is still at it. ARGV: its token, lease in ms, memory of a flight in ms.
-- Returns 1, or 0 if another leads or the flight has landed.
local flight = redis.call('HMGET', KEYS[1], 'token', 'leased_until_at')
if flight[1] ~= ARGV[1] or not flight[2] then
  return 0
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'leased_until_at', string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[2] * 1000))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
