-- A person wants the login of an account tried again, though it was refused or has to pause.
-- KEYS[1]: prefix. ARGV: DID, how often in an hour that makes a pause void. Returns 1. May be sent twice.
-- Beyond that number the pause holds, and so does one that the server asked for: a program that retries for ever
-- must not lock the account out.
local key = KEYS[1] .. 'sessions:' .. ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('HMGET', key, 'refused', 'login_after', 'told', 'forgiven', 'forgiven_since')
local paused = tonumber(stored[2] or 0) > now
redis.call('HDEL', key, 'refused')
if not (stored[1] or paused) or (paused and stored[3]) then
  return 1
end
local count, since = tonumber(stored[4] or 0), tonumber(stored[5] or 0)
if now - since > 3600000 then
  count, since = 0, now
end
if count < tonumber(ARGV[2]) then
  redis.call('HSET', key, 'forgiven', count + 1, 'forgiven_since', string.format('%.0f', since))
  redis.call('HDEL', key, 'login_after', 'logins_failed')
end
return 1
