-- Tell the breaker how a call ended. ARGV: longest refusal in us, number of the probe ('0' if it was none), '1' if the
-- upstream is alive, '0' if not, '' if that was not learned, failures in a row that open it, cooldown in us, channel.
-- What is not of the present phase says nothing. Returns the mirror.
local phase = redis.call('HGET', KEYS[1], 'phase') or 'closed'
local is_probe = ARGV[2] ~= '0'
if is_probe and (phase ~= 'half-open' or field('probe') ~= tonumber(ARGV[2])) then
  return mirror()
end
if not is_probe and phase ~= 'closed' then
  return mirror()
end
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'phase', 'closed', 'failures', 0, 'refuse_until_at', 0)
elseif ARGV[3] == '0' then
  local failures = redis.call('HINCRBY', KEYS[1], 'failures', 1)
  if is_probe or failures >= tonumber(ARGV[4]) then
    redis.call('HSET', KEYS[1], 'phase', 'open', 'refuse_until_at', text(now + ARGV[5]))
  end
elseif is_probe then
  redis.call('HSET', KEYS[1], 'phase', 'open', 'refuse_until_at', text(now))
end
if (redis.call('HGET', KEYS[1], 'phase') or 'closed') ~= phase then
  redis.call('PUBLISH', ARGV[6], '1 gate')
end
return mirror()
