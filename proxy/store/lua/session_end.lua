-- A renewal ended without new tokens. KEYS[1]: prefix. ARGV: DID, who asked to renew, how it ended
-- ('refused': this login is wrong, nobody is to try it again; 'unmade': the server was never asked;
-- 'failed'), ms for which nobody is to log in (0: as counted).
-- Returns 1, or 0 if the right to renew was another's by then. May be sent twice.
local key = KEYS[1] .. 'sessions:' .. ARGV[1]
local stored = redis.call('HMGET', key, 'holder', 'login', 'login_by', 'logins_failed')
if stored[1] ~= ARGV[2] then
  return 0
end
redis.call('HDEL', key, 'holder', 'held_until')
if stored[3] ~= ARGV[2] then
  return 1
end
if ARGV[3] == 'refused' then
  redis.call('HSET', key, 'refused', stored[2])
elseif ARGV[3] == 'unmade' then
  redis.call('HSET', key, 'login_after', 0, 'logins_failed', math.max(0, stored[4] - 1))
  redis.call('HINCRBY', key, 'logins', -1)
end
if tonumber(ARGV[4]) > 0 then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', key, 'login_after', string.format('%.0f', now + ARGV[4]), 'told', '1')
end
return 1
