-- Callers are still at it. ARGV: longest refusal in us, us until they must say so again, burst, how many turns this
-- process has had without asking, id, ... Returns the mirror.
local tokens, unasked = redis.call('HGET', KEYS[1], 'tokens'), tonumber(ARGV[4])
if tokens and unasked > 0 then
  -- Turns had without asking are the fleet's all the same; after a long outage, not more than a burst of them.
  redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', math.max(-ARGV[3], tokens - unasked)))
end
for i = 5, #ARGV do
  redis.call('ZADD', KEYS[2], 'XX', text(now + ARGV[2]), ARGV[i])
end
return mirror()
