-- Store new tokens of an account, if the session is still the one they were made from.
-- KEYS[1]: prefix. ARGV: DID, who asked to renew, version they replace ('' for none), their version, sealed.
-- Returns { 'saved' }, or { 'changed', version, sealed } when another session is there. May be sent twice.
local key = KEYS[1] .. 'sessions:' .. ARGV[1]
local stored = redis.call('HMGET', key, 'version', 'sealed', 'holder')
local version = stored[1] or ''
if version ~= ARGV[4] then
  if version ~= ARGV[3] then
    return { 'changed', version, stored[2] or '' }
  end
  redis.call('HSET', key, 'version', ARGV[4], 'sealed', ARGV[5])
  redis.call('HDEL', key, 'refused', 'logins_failed')
end
if stored[3] == ARGV[2] then
  redis.call('HDEL', key, 'holder', 'held_until')
end
return { 'saved' }
