-- Ask the breaker, which was open. ARGV: longest refusal in us, us that a probe may take.
-- Returns the mirror and 'pass', 'refuse', or 'probe': the mirror has its number.
if (redis.call('HGET', KEYS[1], 'phase') or 'closed') == 'closed' then
  return mirror('pass')
end
if left('refuse_until_at', tonumber(ARGV[1])) > 0 then
  return mirror('refuse')
end
redis.call('HINCRBY', KEYS[1], 'probe', 1)
redis.call('HSET', KEYS[1], 'phase', 'half-open', 'refuse_until_at', text(now + ARGV[2]))
return mirror('probe')
