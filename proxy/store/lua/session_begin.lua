-- Ask to renew the shared session of an account: one at a time, and logins seldom.
-- KEYS[1]: prefix. ARGV: DID, who asks (new for each renewal), version it knows ('' for none), ms for which the
-- right is given, 'refresh' or 'login', what identifies the login (password and server), ms until the next login,
-- doubling with each that fails up to the last ARGV.
-- Returns { 'granted' } | { 'changed', version, sealed } | { 'busy', ms } | { 'refused' } | { 'wait', ms }.
-- Sent again by the same asker it answers the same and counts no second login.
local key = KEYS[1] .. 'sessions:' .. ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('HMGET', key, 'version', 'sealed', 'holder', 'held_until', 'login', 'login_after',
  'logins_failed', 'refused', 'login_by')
if (stored[1] or '') ~= ARGV[3] then
  return { 'changed', stored[1] or '', stored[2] or '' }
end
if stored[3] and stored[3] ~= ARGV[2] and tonumber(stored[4]) > now then
  return { 'busy', stored[4] - now }
end
if ARGV[5] == 'login' and stored[9] ~= ARGV[2] then
  local known = stored[5] == ARGV[6]
  local early = known and tonumber(stored[6] or 0) > now
  if stored[8] == ARGV[6] or early then
    -- Who came here from a refresh that failed has the right to renew, and no use for it.
    redis.call('HDEL', key, 'holder', 'held_until')
    return stored[8] == ARGV[6] and { 'refused' } or { 'wait', stored[6] - now }
  end
  -- Counted as failed until it is known to be not: whoever dies over it must not be followed at once.
  local failed = (known and tonumber(stored[7] or 0) or 0) + 1
  local pause = math.min(tonumber(ARGV[8]), ARGV[7] * 2 ^ math.min(failed - 1, 20))
  redis.call('HSET', key, 'login', ARGV[6], 'login_after', string.format('%.0f', now + pause),
    'logins_failed', failed, 'login_by', ARGV[2])
  redis.call('HINCRBY', key, 'logins', 1)
  redis.call('HDEL', key, 'told')
end
redis.call('HSET', key, 'holder', ARGV[2], 'held_until', string.format('%.0f', now + ARGV[4]))
return { 'granted' }
